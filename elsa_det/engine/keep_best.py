"""What follows an evaluation in training: the best weights are kept, and training stops where nothing gets better."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..d2 import HookBase, comm, hooks
from ..errors import UserError

logger = logging.getLogger(__name__)


class TrainingStopped(BaseException):  # not an Exception: the trainers would log it as a failure
    """Ends the loop of a trainer; its hooks still finish."""


class KeepBest(hooks.BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, which also remembers the best value in checkpoints."""

    def __init__(self, eval_period: int, checkpointer: Any, val_metric: str, mode: str = "max") -> None:
        super().__init__(eval_period, checkpointer, val_metric, mode)
        self.metric, self.mode = val_metric, mode

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "mode": self.mode,
            "best_metric": self.best_metric,
            "best_iter": self.best_iter,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if _is_about_another(state, self.metric, self.mode):
            return
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class EarlyStopping(HookBase):
    """Stops all processes once a metric has not improved in ``patience`` evaluations.

    Register it after the hook that evaluates, with the same period, on all processes.

    Args:
        eval_period: iterations between evaluations.
        metric: its name in the event storage, such as ``"bbox/AP"``.
        mode: ``"max"`` where more is better, ``"min"`` where less is.
        patience: evaluations without improvement that are waited for, at least 1.
        min_delta: an improvement is more than this, in units of the metric.
        before_stop: called on all processes when training is about to stop.
    """

    def __init__(
        self,
        eval_period: int,
        metric: str,
        mode: str = "max",
        patience: int = 5,
        min_delta: float = 0.0,
        before_stop: Callable[[], Any] | None = None,
    ) -> None:
        self.eval_period, self.metric, self.mode = eval_period, metric, mode
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.waited = 0
        self._before_stop = before_stop

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.waited >= self.patience

    def describe(self) -> str:
        """What has been seen so far, for messages."""
        best = "no value yet" if self.best is None else f"best {self.best:.4f}"
        return f"{self.metric} has not improved by more than {self.min_delta:g} in {self.waited} evaluations ({best})"

    def take(self, value: float) -> None:
        """Take in the result of an evaluation; NaN and infinity are no improvement."""
        sign = 1 if self.mode == "max" else -1
        if math.isfinite(value) and (self.best is None or sign * (value - self.best) > self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1

    def _take_latest(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        fresh = value if iteration == self.trainer.storage.iter else math.nan
        self.take(comm.all_gather(fresh)[0])  # the main process has the results

    def before_train(self) -> None:
        self._set(comm.all_gather(self.state_dict())[0])  # a process that could not read the checkpoint lacks it

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.eval_period or done == self.trainer.max_iter:
            return
        self._take_latest()
        if self.exhausted:
            logger.info("Stopping early after iteration %d: %s", self.trainer.iter, self.describe())
            if self._before_stop is not None:
                self._before_stop()
            raise TrainingStopped

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:  # the last evaluation, should the run be prolonged
            self._take_latest()

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "mode": self.mode, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not _is_about_another(state, self.metric, self.mode):
            self._set(state)

    def _set(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


class CheckpointAfterEvaluation(HookBase):
    """Writes the checkpoint of an iteration again once its evaluation is done.

    A checkpoint is written before the evaluation, which may fail; what the evaluation changed (best value, patience) is
    brought in afterwards, so that a resumed run knows as much as an uninterrupted one. Register it after the hooks
    that look at the metric, on the main process.
    """

    def __init__(self, checkpointer: Any, eval_period: int) -> None:
        self._checkpointer, self._period = checkpointer, eval_period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 and done != self.trainer.max_iter:
            self._write_again(f"model_{self.trainer.iter:07d}")

    def after_train(self) -> None:
        if self.trainer.iter != self.trainer.max_iter:
            return
        self.trainer.iter -= 1  # the checkpoint is that of the last iteration
        try:
            self._write_again("model_final")
        finally:
            self.trainer.iter += 1

    def _write_again(self, name: str) -> None:
        if Path(self._checkpointer.get_checkpoint_file()).stem == name:
            self._checkpointer.save(name, iteration=self.trainer.iter)


def flat_names(results: Mapping[str, Any]) -> list[str]:
    """``{"bbox": {"AP": 30.0}}`` as ``["bbox/AP"]``: the names of the metrics in the event storage."""
    names = []
    for name, value in results.items():
        names += [f"{name}/{inner}" for inner in flat_names(value)] if isinstance(value, Mapping) else [name]
    return names


def require_metrics(results: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raise on all processes if an evaluation did not give what the config's switches look at.

    Args:
        results: of the evaluation; empty on all but the main process.
        wanted: the name of a metric by the config key that asks for it.

    Raises:
        UserError: naming the key, and metrics of a similar name.
    """
    known = flat_names(results)
    problems = [f"{key}={name}: {unknown_metric(name, known)}" for key, name in wanted.items() if name not in known]
    for problem in comm.all_gather(problems)[0][:1]:
        raise UserError(problem)


def unknown_metric(name: str, known: Iterable[str]) -> str:
    """The complaint about a metric that an evaluation does not give, with those it could have meant."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or [n for n in known if "-" not in n]
    return (
        f"the evaluation has no metric {name!r}; did you mean {', '.join(near)}?"
        if near
        else (f"the evaluation has no metric {name!r}; it gave none at all")
    )


def _is_about_another(state: Mapping[str, Any], metric: str, mode: str) -> bool:
    if (state["metric"], state["mode"]) == (metric, mode):
        return False
    logger.warning(
        "The checkpoint knows the best of %s (%s), the config asks for %s (%s): it starts afresh",
        state["metric"],
        state["mode"],
        metric,
        mode,
    )
    return True
