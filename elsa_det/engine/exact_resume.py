"""What a checkpoint has to hold beside weights and optimizer, so that a resumed run is the uninterrupted one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..d2 import EventWriter, HookBase, comm
from .data_order import ResumableLoader
from .random_state import random_state, set_random_state

logger = logging.getLogger(__name__)

_WINDOW = 20  #: iterations over which writers smooth
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")
#: averages that Detectron2's models keep as plain numbers, which no state_dict has
_AVERAGES = ("loss_normalizer",)


class ExactResume(HookBase):
    """Keeps in checkpoints, and puts back: random numbers of each process, the place in the data, running averages.

    The running averages are those by which dense detectors normalise their loss, and the windows over which writers
    smooth losses. Register it on all processes; call :meth:`gather` on all of them before a checkpoint is written.

    Args:
        model: not wrapped for distributed training.
        loader: of the training.
    """

    def __init__(self, model: nn.Module, loader: Any) -> None:
        self._model = model
        self._loader = loader if isinstance(loader, ResumableLoader) else None
        self._gathered: tuple[int, list[Any]] | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._to_set: Mapping[str, Any] | None = None

    def gather(self) -> None:
        """Collect the random numbers' state of all processes, which all call this together."""
        own = random_state() if self._to_set is None else self._to_set
        self._gathered = self.trainer.iter, comm.gather(own)

    def state_dict(self) -> dict[str, Any]:
        if comm.get_world_size() == 1:
            self.gather()
        states = None if self._gathered is None or self._gathered[0] != self.trainer.iter else self._gathered[1]
        return {
            "random": states,
            "data": None if self._loader is None else self._loader.state_dict(),
            "averages": self._averages(),
            "windows": self._windows(),
            "latest": self._latest(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state

    def before_train(self) -> None:
        """Put everything back but the random numbers, for which it is too early."""
        state = comm.all_gather(self._loaded)[0]  # a process that could not read the checkpoint lacks it
        self._loaded = None
        if state is None:
            if self.trainer.iter > 0:
                logger.warning(
                    "The checkpoint was written without train.exact_resume: weights, optimizer and schedule go on from "
                    "it, random numbers and the order of the data begin anew"
                )
            return
        differences = []
        if state["random"] is None or len(state["random"]) != comm.get_world_size():
            known = 0 if state["random"] is None else len(state["random"])
            differences.append(f"random numbers of {known} processes in the checkpoint, {comm.get_world_size()} now")
        else:
            self._to_set = state["random"][comm.get_rank()]
        if self._loader is None or state["data"] is None:
            differences.append("the order of the data is not known, and begins anew")
        else:
            differences += self._loader.load_state_dict(state["data"])
        modules = dict(self._model.named_modules())
        for name, value in state["averages"].items():
            module, _, attribute = name.rpartition(".")
            if module in modules:
                setattr(modules[module], attribute, value)
        for name, window in state["windows"].items():
            for value, iteration in window:
                self.trainer.storage.put_scalar(name, value, cur_iter=iteration)
        for name, (value, iteration) in state["latest"].items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False, cur_iter=iteration)
        for difference in differences:
            logger.warning("Resumed, but not exactly as if without interruption: %s", difference)
        if not differences:
            logger.info("Resumed exactly: random numbers and the order of the data go on from the checkpoint")

    def before_step(self) -> None:
        if self._to_set is not None:
            set_random_state(self._to_set)
            self._to_set = None

    def _averages(self) -> dict[str, float]:
        return {
            f"{name}.{attribute}": float(vars(module)[attribute])
            for name, module in self._model.named_modules()
            for attribute in _AVERAGES
            if attribute in vars(module)
        }

    def _windows(self) -> dict[str, list[list[float]]]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: [[float(value), int(iteration)] for value, iteration in history.values()[-_WINDOW:]]
            for name, history in storage.histories().items()
            if hints[name] and name not in _TIMES
        }

    def _latest(self) -> dict[str, tuple[float, int]]:
        """What writers do not smooth, such as the learning rate, of this iteration."""
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        return {
            name: (float(value), int(iteration))
            for name, (value, iteration) in storage.latest().items()
            if iteration == self.trainer.iter and not storage.smoothing_hints()[name] and name not in _TIMES
        }


class MissedLine(HookBase):
    """Writes the last line before an interruption once more: a kill right behind the checkpoint may have prevented it.

    Register it on the main process, behind :class:`ExactResume` and :class:`MissedEvaluation`. Those who read what was
    written take lines of one iteration together.

    Args:
        writers: of the training.
        period: iterations from one line to the next.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        self._writers, self._period = writers, period

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start == 0 or (start % self._period and start != self.trainer.max_iter):
            return
        storage = self.trainer.storage
        if not any(iteration == start - 1 for _, iteration in storage.latest().values()):
            return  # the checkpoint was written without train.exact_resume
        storage.iter = start - 1
        for writer in self._writers:
            writer.write()
        storage.iter = start


class MissedEvaluation(HookBase):
    """Evaluates first where a run was interrupted between a checkpoint and the evaluation that was due with it.

    Without it the best value and the patience of early stopping would lack that evaluation. Register it on all
    processes, behind the hooks that evaluate and follow the metrics, before that which writes the checkpoint again.

    Args:
        eval_period: iterations between evaluations.
        exact: of the same run.
        evaluating: the hooks that act at an evaluation, in their order, without this one.
    """

    def __init__(self, eval_period: int, exact: ExactResume, evaluating: Sequence[HookBase | None]) -> None:
        self._period, self._exact = eval_period, exact
        self._evaluating = [hook for hook in evaluating if hook is not None]
        self._last = -1
        self._resumed = False

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self.mark()

    def mark(self) -> None:
        """The evaluation of this iteration is done, and with it what follows the metrics."""
        self._last = self.trainer.iter

    def before_train(self) -> None:
        resumed, last = comm.all_gather((self._resumed, self._last))[0]
        start = self.trainer.start_iter
        if not resumed or start % self._period or start >= self.trainer.max_iter or last == start - 1:
            return
        logger.info("The evaluation after iteration %d was missed and is made up for", start - 1)
        self.trainer.iter = self.trainer.storage.iter = self._last = start - 1
        self._exact.gather()
        for hook in self._evaluating:
            hook.after_step()
        self.trainer.iter = self.trainer.storage.iter = start

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._resumed, self._last = True, state["last"]
