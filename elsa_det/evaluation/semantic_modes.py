"""Evaluation of a segmentation config in the modes that ``train.semantic_modes`` names."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from ..d2 import instantiate
from ..data.loader_errors import with_named_errors
from ..errors import UserError
from ..modeling.semantic import Segmentor
from .inference import run_inference
from .semantic_inference import SemanticInference

logger = logging.getLogger(__name__)

WHOLE = "whole"
MODES = (WHOLE, "slide", "ms", "ms_slide")
_OPTIONS = ("crop", "stride", "ratios", "flip")


def segmentor_of(model: nn.Module) -> Segmentor | None:
    """The segmentor in a model, which may be wrapped for several processes; None if it is something else."""
    inner = getattr(model, "module", model)
    return inner if isinstance(inner, Segmentor) else None


def semantic_modes(cfg: Any, model: nn.Module) -> list[str]:
    """The modes to evaluate a model in; ["whole"] for what is no segmentor.

    Raises:
        UserError: ``train.semantic_modes`` is empty or names another mode, asks for one of a model that is no
            segmentor, or ``dataset.inference`` cannot be used.
    """
    modes = list(OmegaConf.select(cfg, "train.semantic_modes") or [])
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or len(set(modes)) != len(modes):
        raise UserError(f"train.semantic_modes={modes}: there are {', '.join(MODES)}, each at most once")
    segmentor = segmentor_of(model)
    if segmentor is None:
        if modes not in ([], [WHOLE]):
            raise UserError(f"train.semantic_modes={modes} is for segmentors, the model is a {type(model).__name__}")
        return [WHOLE]
    if not modes:
        raise UserError(f"train.semantic_modes is empty: name one or more of {', '.join(MODES)}")
    for mode in modes:
        if mode != WHOLE:
            inference_in_mode(cfg, segmentor, mode)
    return modes


def inference_in_mode(cfg: Any, model: Segmentor, mode: str) -> SemanticInference:
    """The segmentor run in windows ("slide"), in several sizes and mirrored ("ms"), or both ("ms_slide").

    Raises:
        UserError: ``dataset.inference`` has something else than crop, stride, ratios and flip, or values that make no
            sense.
    """
    node = OmegaConf.select(cfg, "dataset.inference")
    options = {} if node is None else dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise UserError(f"dataset.inference has no {', '.join(unknown)}: there are {', '.join(_OPTIONS)}")
    chosen: dict[str, Any] = {}
    if mode.endswith("slide"):
        if "crop" not in options:
            raise UserError(f"train.semantic_modes has {mode!r}, which needs dataset.inference.crop, such as [512,512]")
        chosen |= {name: options[name] for name in ("crop", "stride") if options.get(name) is not None}
    if mode.startswith("ms"):
        if "ratios" not in options:
            raise UserError(
                f"train.semantic_modes has {mode!r}, which needs dataset.inference.ratios, such as [0.75,1,1.25]"
            )
        chosen |= {name: options[name] for name in ("ratios", "flip") if name in options}
    return SemanticInference(model, **chosen)


def evaluate_modes(
    cfg: Any,
    model: nn.Module,
    *,
    evaluated: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Evaluate in each of the modes but "whole".

    Files of the evaluator go to a folder ``inference_<mode>`` in its own.

    Args:
        cfg: The config.
        model: The model, possibly wrapped for several processes.
        evaluated: Called with each evaluator that is done.

    Returns:
        The evaluator's results by task with the mode at the end of the name: ``{"sem_seg_slide": {"mIoU": …}, …}``.

    Raises:
        UserError: See :func:`semantic_modes`.
    """
    results: dict[str, Any] = {}
    segmentor = segmentor_of(model)
    for mode in semantic_modes(cfg, model):
        if mode == WHOLE or segmentor is None:
            continue
        inference = inference_in_mode(cfg, segmentor, mode)
        logger.info("Evaluation in mode %s: %s", mode, inference.extra_repr())
        # A copy keeps its place in the config, to which its interpolations refer.
        dataloader = copy.deepcopy(cfg.dataloader)
        if dataloader.evaluator.get("output_dir") is not None:
            dataloader.evaluator.output_dir = os.path.join(dataloader.evaluator.output_dir, f"inference_{mode}")
        evaluator = instantiate(dataloader.evaluator)
        found = run_inference(inference, instantiate(with_named_errors(dataloader.test, "test")), evaluator)
        if evaluated is not None:
            evaluated(evaluator)
        results |= {f"{task}_{mode}": scores for task, scores in found.items()}
    return results
