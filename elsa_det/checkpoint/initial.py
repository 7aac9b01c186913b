"""Weights that a training starts from, or an evaluation runs on: found, read, matched, and reported."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..modeling.backbone import HierarchicalBackbone
from .backbone import convert_backbone, describe_backbone
from .conversion import check_finite
from .detector import convert_detector, describe_detector, is_detectron2, is_mmdetection
from .published import PUBLISHED_WEIGHTS
from .reading import CheckpointError, read_checkpoint, unwrap_state_dict
from .segmentor import convert_segmentor, is_published_segmentor, is_segmentor

logger = logging.getLogger(__name__)

#: the word that asks for training from scratch
FROM_SCRATCH = "none"


@dataclass
class LoadReport:
    """What became of every key of a checkpoint and of the model."""

    path: str
    kind: str
    matched: list[str] = field(default_factory=list)
    initialised: dict[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.kind}): {len(self.matched)} tensors loaded"]
        for title, table in (
            ("of the model kept their initialisation", self.initialised),
            ("of the file were left over", self.left_over),
            ("were skipped for their shape", self.mismatched),
        ):
            if table:
                lines.append(f"  {len(table)} {title}:")
                for reason, count in Counter(table.values()).items():
                    keys = [key for key, why in table.items() if why == reason]
                    lines.append(f"    {count:4d} x {reason}: {', '.join(keys[:4])}{' …' if count > 4 else ''}")
        return "\n".join(lines)


def check_initial_weights(path: str | None) -> None:
    """Raise, with the way out, if the weights that a config names are not there.

    Raises:
        CheckpointError: none are named; training from scratch has to be asked for.
        FileNotFoundError: the file does not exist.
    """
    if not path:
        raise CheckpointError(
            "train.init_checkpoint is empty: name a file, or train from scratch with train.init_checkpoint=none"
        )
    if path == FROM_SCRATCH or Path(path).is_file():
        return
    known = PUBLISHED_WEIGHTS.get(Path(path).name)
    source = f"It stands for {known}. Download it and put it there" if known else "Put the file there"
    raise FileNotFoundError(
        f"train.init_checkpoint={path} does not exist (looked for {Path(path).absolute()}). {source}, "
        "name another file with train.init_checkpoint=PATH, or train from scratch with train.init_checkpoint=none."
    )


def load_initial_weights(model: nn.Module, path: str, *, allow_mismatch: bool = False) -> LoadReport | None:
    """Load a checkpoint into ``model``: a whole model's, ours or published, or a backbone's into the backbone.

    Args:
        model: a model with at most one ELSA-Swin or Swin backbone.
        path: a checkpoint file, or ``"none"`` to keep the initialisation.
        allow_mismatch: for whole models, leave parameters of another shape (another number of classes, say) as they are
            initialised instead of refusing the file.

    Returns:
        An account of every key, which is also logged; None for ``"none"``.

    Raises:
        FileNotFoundError: see :func:`check_initial_weights`.
        CheckpointError: no file is named, or it cannot be read or does not fit the model.
    """
    check_initial_weights(path)
    if path == FROM_SCRATCH:
        logger.info("Training from scratch, as train.init_checkpoint=none asks for.")
        return None
    published = read_checkpoint(path)
    weights = unwrap_state_dict(published)
    own = model.state_dict()
    if is_mmdetection(weights) and is_detectron2(own):
        conversion = convert_detector(published)
        report = LoadReport(path, f"{conversion.kind}, published", left_over=conversion.left_over)
        _load_whole(model, conversion.state_dict, report, allow_mismatch)
    elif is_published_segmentor(weights) and is_segmentor(own):
        conversion = convert_segmentor(published)
        report = LoadReport(path, f"{conversion.kind}, published", left_over=conversion.left_over)
        _load_whole(model, conversion.state_dict, report, allow_mismatch)
    elif set(weights) & set(own) and not _is_backbone_alone(weights):
        check_finite(weights)
        report = LoadReport(path, "checkpoint of a whole model")
        _load_whole(model, weights, report, allow_mismatch)
    else:
        report = _load_backbone(model, weights, path)
    logger.info("Weights: %s", report)
    return report


def _is_backbone_alone(weights: dict[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in weights or all(key.startswith("backbone.bottom_up.") for key in weights)


def _load_whole(model: nn.Module, weights: dict[str, Tensor], report: LoadReport, allow_mismatch: bool) -> None:
    own = model.state_dict()
    unexpected = {key: "no such name in the model" for key in weights if key not in own}
    report.left_over = {**report.left_over, **unexpected}
    report.initialised = {key: "not in the file" for key in own if key not in weights}
    for key in (key for key in own if key in weights):  # in the model's order, which is the same each time
        if own[key].shape == weights[key].shape:
            report.matched.append(key)
        else:
            report.mismatched[key] = (
                f"shape {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model"
            )
    if unexpected or report.initialised or (report.mismatched and not allow_mismatch):
        remedy = "Use the config that the checkpoint was trained with"
        if report.mismatched and not (unexpected or report.initialised):
            remedy += (
                ", or train.init_allow_mismatch=True to start those parameters afresh (fine-tuning to other classes)"
            )
        raise CheckpointError(f"the checkpoint does not fit the model{_both(weights, own)}. {remedy}.\n{report}")
    model.load_state_dict({key: weights[key] for key in report.matched}, strict=False)


def _both(weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What the file and the model are, where both are two-stage detectors."""
    if not (is_detectron2(weights) and is_detectron2(own)):
        return ""
    return f": the file holds {describe_detector(weights)}, the config has {describe_detector(own)}"


def _load_backbone(model: nn.Module, weights: dict[str, Tensor], path: str) -> LoadReport:
    backbones = [module for module in model.modules() if isinstance(module, HierarchicalBackbone)]
    conversion = convert_backbone(weights)
    looks_like = describe_backbone(conversion.state_dict)
    if len(backbones) != 1:
        raise CheckpointError(f"{path} holds {looks_like}, but the model has {len(backbones)} backbones of that family")
    own = backbones[0].state_dict()
    report = LoadReport(path, looks_like, left_over=conversion.left_over)
    for key, value in conversion.state_dict.items():
        if key not in own:
            report.left_over[key] = "no such name in the model"
        elif own[key].shape != value.shape:
            report.mismatched[key] = f"shape {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model"
        else:
            report.matched.append(key)
    outputs = {f"norm{i}.{name}" for i in range(len(backbones[0].layers)) for name in ("weight", "bias")}
    missing = [key for key in own if key not in conversion.state_dict]
    report.initialised = {
        key: "output norm, starts as the identity" if key in outputs else "not in the file" for key in missing
    }
    unknown = [key for key in conversion.state_dict if key not in own]
    if unknown or report.mismatched or set(missing) - outputs:
        raise CheckpointError(
            f"{path} looks like {looks_like}, but the config's backbone is {describe_backbone(own)}: "
            f"use the weights of that model or the config of these weights.\n{report}"
        )
    backbones[0].load_state_dict(conversion.state_dict, strict=False)
    return report
