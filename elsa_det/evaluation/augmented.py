"""Evaluation of a config with test-time augmentation, beside the plain one."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from ..d2 import instantiate
from ..d2 import transforms as T
from ..data.loader_errors import with_named_errors
from ..errors import UserError
from .detection_tta import DetectionTTA
from .inference import run_inference

logger = logging.getLogger(__name__)

#: what the names of results end in
TTA_LABEL = "_TTA"

_OPTIONS = ("min_sizes", "max_size", "flip")


def with_tta(cfg: Any, model: nn.Module) -> DetectionTTA | None:
    """The model with the test-time augmentation that ``train.tta`` asks for; None if it is off.

    Raises:
        UserError: unknown or unusable options, a model that cannot be augmented, or nothing to evaluate it with.
    """
    node = OmegaConf.select(cfg, "train.tta")
    if node is None or not node.get("enabled", False):
        return None
    options: Any = OmegaConf.to_container(node, resolve=True)
    unknown = sorted(set(options) - {"enabled", *_OPTIONS})
    if unknown:
        raise UserError(f"train.tta has no {', '.join(unknown)}: there are enabled, {', '.join(_OPTIONS)}")
    if OmegaConf.select(cfg, "dataloader.evaluator") is None:
        raise UserError("train.tta.enabled=True, but the config has no dataloader.evaluator: turn it off, or add one")
    if "min_sizes" not in options:
        raise UserError("train.tta.enabled=True needs train.tta.min_sizes, such as [600,800,1000]")
    return DetectionTTA(model, **{name: options[name] for name in _OPTIONS if name in options})


def evaluate_with_tta(cfg: Any, model: nn.Module) -> dict[str, Any]:
    """Evaluate once more, with test-time augmentation.

    Images come as they are on disk: resizing in the test loader is left out, as the views resize on their own. Files of
    the evaluator go to a folder ``inference_TTA`` in its own.

    Returns:
        The evaluator's results by task with ``_TTA`` at the end of the name: ``{"bbox_TTA": {"AP": …}, …}``; empty
        where ``train.tta`` is off.

    Raises:
        UserError: see :func:`with_tta`.
    """
    augmented = with_tta(cfg, model)
    if augmented is None:
        return {}
    logger.info("Evaluation with test-time augmentation: %s.", augmented)
    # A copy keeps its place in the config, to which its interpolations refer.
    dataloader = copy.deepcopy(cfg.dataloader)
    steps = OmegaConf.select(dataloader.test, "mapper.augmentations")
    if steps is not None:
        kept = [step for step in steps if not isinstance(instantiate(step), T.ResizeShortestEdge)]
        dataloader.test.mapper.augmentations = kept
    evaluators = dataloader.evaluator
    for evaluator in evaluators if OmegaConf.is_list(evaluators) else [evaluators]:
        if evaluator.get("output_dir") is not None:
            evaluator.output_dir = os.path.join(evaluator.output_dir, f"inference{TTA_LABEL}")
    results = run_inference(
        augmented, instantiate(with_named_errors(dataloader.test, "test")), instantiate(dataloader.evaluator)
    )
    return {f"{task}{TTA_LABEL}": scores for task, scores in results.items()}
