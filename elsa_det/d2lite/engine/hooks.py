"""Hooks most trainings want: timing, writers, checkpoints, learning rate, evaluation, memory and profiles."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim.lr_scheduler import LRScheduler as _TorchLRScheduler

from ..evaluation.testing import flatten_results_dict
from ..solver import LRMultiplier
from ..utils import comm
from ..utils.events import EventWriter
from .train_loop import HookBase, TrainerBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]

logger = logging.getLogger(__name__)

_Callback = Callable[[TrainerBase], Any]


def _period_ended(trainer: TrainerBase, period: int) -> bool:
    """Whether ``after_step`` of the current iteration completes another ``period`` iterations."""
    return period > 0 and (trainer.iter + 1) % period == 0


def _is_last_step(trainer: TrainerBase) -> bool:
    return trainer.iter + 1 == trainer.max_iter


class CallbackHook(HookBase):
    """A hook made of functions; each one takes the trainer."""

    def __init__(
        self,
        *,
        before_train: _Callback | None = None,
        after_train: _Callback | None = None,
        before_step: _Callback | None = None,
        after_step: _Callback | None = None,
    ):
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, moment: str) -> None:
        callback = self._callbacks[moment]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class IterationTimer(HookBase):
    """Seconds per iteration as the scalar ``time``, and a summary in the log at the end.

    It measures from its own ``before_step`` to its own ``after_step``: register it first.
    """

    def __init__(self, warmup_iter: int = 3):
        """
        Args:
            warmup_iter: Iterations left out at the beginning, which are slow for reasons of their own.
        """
        self._warmup_iter = warmup_iter
        self._run_began = self._step_began = time.perf_counter()
        self._in_steps = 0.0

    def _restart(self) -> None:
        self._run_began = time.perf_counter()
        self._in_steps = 0.0

    def before_train(self) -> None:
        self._restart()

    def before_step(self) -> None:
        self._step_began = time.perf_counter()

    def after_step(self) -> None:
        seconds = time.perf_counter() - self._step_began
        storage = self.trainer.storage
        if storage.iter + 1 - self.trainer.start_iter >= self._warmup_iter:
            storage.put_scalars(time=seconds)
            self._in_steps += seconds
        else:
            self._restart()

    def after_train(self) -> None:
        total = time.perf_counter() - self._run_began
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if counted > 0 and self._in_steps > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                counted,
                _clock(self._in_steps),
                self._in_steps / counted,
            )
        logger.info("Total training time: %s (%s on hooks)", _clock(total), _clock(total - self._in_steps))


def _clock(seconds: float) -> str:
    """``3725.9`` as ``1:02:05``."""
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Lets the event writers write every ``period`` iterations and after the last one."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        """
        Args:
            writers: Closed when training ends.
            period: Iterations between writes; how a writer smooths its numbers does not depend on it.

        Raises:
            TypeError: One of them is no :class:`EventWriter`.
        """
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"PeriodicWriter: {writer!r} is a {type(writer).__name__}, not an EventWriter.")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        if _period_ended(self.trainer, self._period) or _is_last_step(self.trainer):
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            with contextlib.closing(writer):
                writer.write()  # other hooks may have left something in their after_train


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's :class:`PeriodicCheckpointer` as a hook: saves every ``period`` iterations and after the last one."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class _AtEvaluations(HookBase):
    """Does something every ``_period`` iterations and, in place of the last time, after training."""

    _period: int

    def _do_at_evaluation(self) -> None:
        raise NotImplementedError

    def after_step(self) -> None:
        if _period_ended(self.trainer, self._period) and not _is_last_step(self.trainer):
            self._do_at_evaluation()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # not where training stopped early
            self._do_at_evaluation()


class BestCheckpointer(_AtEvaluations):
    """Saves a checkpoint whenever a metric is better than ever before.

    Register it after the hook that computes the metric, usually :class:`EvalHook`, with the same period.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        """
        Args:
            eval_period: Iterations between evaluations; 0 looks at the metric only after training.
            checkpointer: What saves.
            val_metric: Name of the metric in the event storage, such as ``"bbox/AP50"``.
            mode: ``"max"`` where more is better, ``"min"`` where less is.
            file_prefix: Name of the file, without suffix.

        Raises:
            ValueError: Unknown ``mode``.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"BestCheckpointer: mode={mode!r} is not known, use 'max' or 'min'.")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._sign = 1 if mode == "max" else -1
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _do_at_evaluation(self) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            logger.warning("BestCheckpointer: no metric '%s' has been stored, so nothing is saved.", self._metric)
            return
        value, iteration = latest
        known = f"best {self.best_metric:.5f} @ iteration {self.best_iter}" if self.best_metric is not None else "first"
        # An infinity would never be beaten again, and NaN cannot be compared.
        better = math.isfinite(value) and (
            self.best_metric is None or self._sign * value > self._sign * self.best_metric
        )
        if not better:
            logger.info("Not saving: %s is %.5f (%s so far)", self._metric, value, known)
            return
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info("Saved %s: %s is %.5f (%s before)", self._file_prefix, self._metric, value, known)
        self.best_metric, self.best_iter = value, iteration


class LRScheduler(HookBase):
    """Steps the learning rate after every iteration, and records it as ``lr``.

    Recorded is the rate of the parameter group with most parameters; where every group has a single one, the rate
    that most groups share.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _TorchLRScheduler | ParamScheduler | None = None,
    ):
        """
        Args:
            optimizer: The trainer's if not given.
            scheduler: One of PyTorch's, or an fvcore schedule of the factor on the optimizer's rates over training.
                The trainer's if not given.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        trainer = self.trainer
        optimizer = self._optimizer or trainer.optimizer
        schedule = self.scheduler
        if isinstance(schedule, ParamScheduler):
            self._scheduler = LRMultiplier(optimizer, schedule, trainer.max_iter, last_iter=trainer.iter - 1)
        self._optimizer, self._best_param_group_id = optimizer, self.get_best_param_group_id(optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the parameter group whose rate stands for all."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        assert self._optimizer is not None, "before_train() sees to it"
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        # A ParamScheduler is a pure function of progress; its LRMultiplier, once training began, is PyTorch's kind.
        return self.scheduler.state_dict() if isinstance(self.scheduler, _TorchLRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.scheduler, _TorchLRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(_AtEvaluations):
    """Evaluates every ``eval_period`` iterations and after training; the numbers go to the event storage."""

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True):
        """All workers must have this hook, or none: it ends in a barrier.

        Args:
            eval_period: Iterations between evaluations; 0 evaluates only after training.
            eval_function: Returns a nested dict of numbers, or nothing.
            eval_after_train: Whether to evaluate once more at the end.
        """
        self._period, self._eval_after_train = eval_period, eval_after_train
        self._func = eval_function

    def _do_at_evaluation(self) -> None:
        self._do_eval()

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            self._store(results)
        comm.synchronize()  # so that workers that evaluated faster do not time their waiting as training

    def _store(self, results: Any) -> None:
        if not isinstance(results, dict):
            raise TypeError(f"EvalHook: eval_function must return a dict of metrics, but returned {results!r}.")
        metrics = flatten_results_dict(results)
        for name, value in metrics.items():
            try:
                float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"EvalHook: the metric '{name}' is {value!r}, which is not a number.") from error
        self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)

    def after_train(self) -> None:
        if self._eval_after_train:
            super().after_train()
