"""What was under way when numbers went bad, as lines of a file."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Incident:
    """What one process saw.

    Args:
        kind: "loss", "forward" (a head refused its scores), "gradient", or "overflow" (under a gradient scaler).
        losses: of the pass, where there are any.
        error: of the error in forward.
        grad_norm: of all gradients together; scaled, under a gradient scaler.
        bad_gradients: parameters whose gradients are not finite; as gradients are, those of all processes together.
        passes: the batches of the step so far, as :func:`describe_batch` describes them.
    """

    kind: str
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""
    grad_norm: float | None = None
    bad_gradients: Sequence[str] = ()
    passes: Sequence[Any] = ()


def write_incident(path: Path, ranks: Sequence[Incident], **common: Any) -> bool:
    """Append an incident to a file, a line of JSON for each process; on the main process. Returns whether it worked.

    Numbers that are not finite are written as "nan", "inf" and "-inf", so that any reader of JSON takes the file.

    Args:
        path: of the file; its folder is made.
        ranks: what each process saw.
        common: more that stands in each of the lines.
    """
    lines = [
        json.dumps(_readable({**common, "rank": rank, "processes": len(ranks), **dataclasses.asdict(incident)}))
        for rank, incident in enumerate(ranks)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
    except OSError as error:  # a full disk must not part the processes
        logger.warning("%s could not be written: %s", path, error)
        return False
    return True


def describe_batch(batch: Any) -> list[dict[str, Any]]:
    """What tells the images of a batch apart: files, ids, sizes (height, width) in pixels, objects, values."""
    items = batch if isinstance(batch, (list, tuple)) else [batch]
    return [_describe_image(item) if isinstance(item, Mapping) else {"item": _summary(item)} for item in items]


def _describe_image(item: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: item[key] for key in ("file_name", "sem_seg_file_name", "image_id", "height", "width") if key in item}
    if isinstance(item.get("image"), Tensor):
        found["image"] = _summary(item["image"])
    instances = item.get("instances")
    if instances is not None:
        found["instances"] = len(instances)
        if instances.has("gt_classes"):
            found["classes"] = instances.gt_classes.tolist()
        if instances.has("gt_boxes"):
            found["boxes"] = instances.gt_boxes.tensor.tolist()
    if isinstance(item.get("sem_seg"), Tensor):
        labels, pixels = item["sem_seg"].unique(return_counts=True)
        found["labels"] = {str(label): count for label, count in zip(labels.tolist(), pixels.tolist())}
    return found


def _summary(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return {"shape": list(value.shape)} if isinstance(value, Tensor) else type(value).__name__
    finite = value[torch.isfinite(value)] if value.is_floating_point() else value
    limits = {"min": float(finite.min()), "max": float(finite.max())} if finite.numel() else {}
    return {"shape": list(value.shape), **limits, "not_finite": value.numel() - finite.numel()}


def _readable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _readable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
