"""Evaluation on the first images of the test data only: a look during training, no result to report."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ..d2 import COCOEvaluator, InferenceSampler, build_detection_test_loader, comm
from ..errors import UserError
from .semantic_evaluator import SemanticEvaluator

logger = logging.getLogger(__name__)


def limit_evaluation(cfg: Any) -> Any:
    """A config whose test loader and evaluator are for ``train.limit_eval_images`` images only.

    Returns:
        A changed copy, or ``cfg`` itself where there is nothing to limit.

    Raises:
        UserError: the number is not positive, or the test loader or evaluator is of a kind that cannot be limited.
    """
    limit = OmegaConf.select(cfg, "train.limit_eval_images")
    if limit is None:
        return cfg
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise UserError(f"train.limit_eval_images={limit!r} must be a positive number of images, or null for all")
    if "evaluator" not in cfg.dataloader:
        return cfg
    cfg = copy.deepcopy(cfg)
    loader = cfg.dataloader.test
    if _short(loader) != build_detection_test_loader.__name__ or loader.get("sampler") is not None:
        raise UserError(
            f"train.limit_eval_images={limit} needs dataloader.test to be build_detection_test_loader without a "
            f"sampler, and it is {_short(loader)}: set train.limit_eval_images=null"
        )
    evaluators = cfg.dataloader.evaluator
    for evaluator in evaluators if OmegaConf.is_list(evaluators) else [evaluators]:
        if _short(evaluator) == COCOEvaluator.__name__:
            evaluator._target_ = SeenImagesCOCOEvaluator
        elif _short(evaluator) != SemanticEvaluator.__name__:
            raise UserError(
                f"train.limit_eval_images={limit}: {_short(evaluator)} evaluates whole datasets only. Set "
                "train.limit_eval_images=null"
            )
    loader.update(_target_=build_limited_test_loader, limit=limit)
    return cfg


def build_limited_test_loader(dataset: Any, *, limit: int, **arguments: Any) -> Any:
    """Detectron2's test loader for the first ``limit`` images of a dataset, or all if there are not so many."""
    size = min(limit, len(dataset))
    logger.warning("Evaluating the first %d of %d images: not a result of the dataset", size, len(dataset))
    return build_detection_test_loader(dataset, sampler=InferenceSampler(size), **arguments)


class SeenImagesCOCOEvaluator(COCOEvaluator):
    """COCO's metrics over the images that it was shown: others do not count as missed."""

    def reset(self) -> None:
        super().reset()
        self._seen: set[Any] = set()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        self._seen.update(image["image_id"] for image in inputs)
        super().process(inputs, outputs)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> Any:
        if img_ids is None:
            img_ids = sorted(set().union(*comm.all_gather(self._seen)))
        return super().evaluate(img_ids=img_ids)


def _short(node: Any) -> str:
    target = node.get("_target_")
    return target.rpartition(".")[2] if isinstance(target, str) else getattr(target, "__name__", repr(target))
