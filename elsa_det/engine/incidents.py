"""What was under way when numbers went bad, as files."""

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

from ..d2 import comm

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Incident:
    """What one process saw.

    Args:
        kind: "loss", "forward" (a head refused its scores), "gradient", or "overflow" (under a gradient scaler).
        losses: of the pass, where there are any.
        message: of the error in forward.
        grad_norm: of all gradients together; scaled, under a gradient scaler.
        bad_gradients: parameters whose gradients are not finite.
    """

    kind: str
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    message: str = ""
    grad_norm: float | None = None
    bad_gradients: Sequence[str] = ()


def write_incident(
    folder: Path,
    ranks: Sequence[Incident],
    batches: Sequence[Any],
    *,
    iteration: int,
    rates: Sequence[float],
    action: str,
    counters: Mapping[str, int],
    scale: float | None,
    max_files: int,
) -> Path | None:
    """Write ``iter_<iteration>_rank<rank>.json`` of this process; None if there are ``max_files`` already.

    Numbers that are not finite are written as "nan", "inf" and "-inf", so that any reader of JSON takes the file.

    Args:
        ranks: what each process saw.
        batches: of this process, one of each pass of the step so far.
        iteration, rates, action, counters, scale: written as they are.
    """
    rank = comm.get_rank()
    kinds = [incident.kind for incident in ranks]
    content = {
        "iteration": iteration,
        "rank": rank,
        "processes": len(ranks),
        "kind": "forward" if "forward" in kinds else kinds[rank],
        "action": action,
        **counters,
        "losses": {str(i): dict(incident.losses) for i, incident in enumerate(ranks)},
        "errors": {str(i): incident.message for i, incident in enumerate(ranks) if incident.message},
        "lr": list(rates),
        "grad_norm": ranks[rank].grad_norm,
        "grad_scale": scale,
        "bad_gradients": list(ranks[rank].bad_gradients),
        "passes": [describe_batch(batch) for batch in batches],
    }
    path = folder / f"iter_{iteration:07d}_rank{rank}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.glob(f"iter_*_rank{rank}.json"))) >= max_files and not path.exists():
            return None
        path.write_text(json.dumps(_readable(content), indent=2) + "\n")
    except OSError as error:  # a full disk must not part the processes
        logger.warning("%s could not be written: %s", path, error)
    return path


def describe_batch(batch: Any) -> list[dict[str, Any]]:
    """What tells the images of a batch apart: files, ids, sizes (height, width) in pixels, objects, values."""
    items = batch if isinstance(batch, (list, tuple)) else [batch]
    return [_describe_image(item) if isinstance(item, Mapping) else {"item": _summary(item)} for item in items]


def list_some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
