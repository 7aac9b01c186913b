"""The evaluator interface, and the loop that feeds a dataset through a model to an evaluator."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ..utils import comm
from ..utils.logger import log_every_n_seconds

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

logger = logging.getLogger(__name__)

_WARMUP_BATCHES = 5
_SECONDS_BETWEEN_REPORTS = 5


class DatasetEvaluator:
    """Sees every batch of a dataset with the model's outputs, and sums them up in the end."""

    def reset(self) -> None:
        """Forget everything: a new round begins."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in one batch: what the model got, and what it returned (lists of equal length, as a rule)."""

    def evaluate(self) -> Any:
        """The result, usually task → metric → score. ``None`` or an empty dict where there is none (other ranks)."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their results are merged."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]):
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        """All results in one dict, on the main process.

        Raises:
            ValueError: Two evaluators report the same task.
        """
        merged: OrderedDict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if result is None or not comm.is_main_process():
                continue
            if repeated := merged.keys() & result.keys():
                raise ValueError(f"{type(evaluator).__name__} reports {sorted(repeated)}, as one before it did.")
            merged.update(result)
        return merged


class _Stopwatch:
    """Seconds spent on each part of the loop, over the batches after the warm-up."""

    PARTS = ("data", "compute", "eval")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began = self._lap = time.perf_counter()
        self.spent = dict.fromkeys(self.PARTS, 0.0)

    def lap(self, part: str) -> None:
        """Book the time since the last call on ``part``."""
        now = time.perf_counter()
        self.spent[part] += now - self._lap
        self._lap = now

    def elapsed(self) -> float:
        return time.perf_counter() - self.began


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> Any:
    """Run the model over the data without gradients, log its speed, and return what the evaluator makes of it.

    Args:
        model: Called with each batch. A module is in eval mode meanwhile.
        data_loader: Yields batches; must have a length.
        evaluator: One, a list of them, or ``None`` to measure speed alone.
        callbacks: Functions to call ``on_start``, ``before_inference``, ``after_inference`` (of every batch) and
            ``on_end``.

    Returns:
        The result of ``evaluator.evaluate()``, with ``{}`` for ``None``.
    """
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator)
    callbacks = callbacks or {}

    def notify(moment: str) -> None:
        if moment in callbacks:
            callbacks[moment]()

    total = len(data_loader)
    logger.info("Start inference on %d batches", total)
    evaluator.reset()
    warmup = min(_WARMUP_BATCHES, max(total - 1, 0))
    watch = _Stopwatch()
    eval_mode = inference_context(model) if isinstance(model, nn.Module) else nullcontext()
    with eval_mode, torch.no_grad():
        watch.restart()
        notify("on_start")
        for index, inputs in enumerate(data_loader):
            watch.lap("data")
            if index == warmup:
                watch.restart()
            notify("before_inference")
            outputs = model(inputs)
            notify("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("compute")
            evaluator.process(inputs, outputs)
            watch.lap("eval")
            measured = index + 1 - (warmup if index >= warmup else 0)
            if index >= 2 * warmup or watch.spent["compute"] > 5 * measured:
                _report_progress(watch, index + 1, total, measured)
        notify("on_end")

    # Before evaluate(), which waits for the other ranks.
    measured, devices = max(total - warmup, 1), comm.get_world_size()
    for what, seconds in (("time", watch.elapsed()), ("pure compute time", watch.spent["compute"])):
        logger.info(
            "Total inference %s: %s (%.6f s / iter per device, on %d devices)",
            what,
            timedelta(seconds=int(seconds)),
            seconds / measured,
            devices,
        )
    results = evaluator.evaluate()
    return {} if results is None else results


def _report_progress(watch: _Stopwatch, done: int, total: int, measured: int) -> None:
    """One line every few seconds: batches done, seconds for each part of one, time to go."""
    data, compute, evaluation = (watch.spent[part] / measured for part in watch.PARTS)
    per_batch = watch.elapsed() / measured
    log_every_n_seconds(
        logging.INFO,
        f"Inference done {done}/{total}. "
        f"Dataloading: {data:.4f} s/iter. "
        f"Inference: {compute:.4f} s/iter. "
        f"Eval: {evaluation:.4f} s/iter. "
        f"Total: {per_batch:.4f} s/iter. "
        f"ETA={timedelta(seconds=int(per_batch * (total - done)))}",
        n=_SECONDS_BETWEEN_REPORTS,
    )


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Have the model in eval mode inside the block, and in the mode it was in afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
