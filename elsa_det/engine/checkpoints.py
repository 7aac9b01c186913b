"""When a training writes checkpoints, how many it keeps, and how it ends when it is asked to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint import SafeCheckpointer, numbered_checkpoints, remove_unfinished
from ..d2 import HookBase, comm
from ..errors import UserError
from .stop_signals import Requeue, StopSignals

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Writes ``model_0001199.pth``, … every so many iterations and ``model_final.pth`` after the last one.

    A signal that :class:`StopSignals` remembers ends the training with the iteration, its state saved. Register it on
    all processes, before the hooks that evaluate.

    Args:
        checkpointer: writes, on the main process.
        period: iterations from one to the next.
        max_to_keep: how many numbered ones of this run stay, the latest; None keeps all. Those of a run that is
            resumed count, those of an earlier one in the same folder do not. ``model_final.pth`` and
            ``model_best.pth`` always stay.
        signals: that are waiting to be obeyed; None for none.
        before_save: called on all processes before a checkpoint is written.
    """

    def __init__(
        self,
        checkpointer: SafeCheckpointer,
        period: int,
        max_to_keep: int | None = None,
        *,
        signals: StopSignals | None = None,
        before_save: Callable[[], Any] | None = None,
    ) -> None:
        self._checkpointer, self._period, self._max_to_keep = checkpointer, int(period), max_to_keep
        self._signals, self._before_save = signals, before_save
        self._kept: list[str] = []

    def before_train(self) -> None:
        start = self.trainer.start_iter
        local = start > 0 and "://" not in self._checkpointer.save_dir
        found = numbered_checkpoints(self._checkpointer.save_dir) if local else []
        self._kept = [str(path) for iteration, path in found if iteration < start]
        tagged = comm.all_gather(os.path.basename(self._checkpointer.get_checkpoint_file()) if start else "")[0]
        if start and start == self.trainer.max_iter and tagged != "model_final.pth":
            self.trainer.iter = start - 1  # interrupted between the last two checkpoints
            self.save("model_final")
            self.trainer.iter = start

    def after_step(self) -> None:
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        signal = None if self._signals is None or last else self._signals.agreed()
        if signal is not None or (iteration + 1) % self._period == 0:
            self.save(f"model_{iteration:07d}")
            self._keep(os.path.join(self._checkpointer.save_dir, f"model_{iteration:07d}.pth"))
        if last:
            self.save("model_final")
        if signal is not None:
            logger.warning("%s: saved after iteration %d, to be gone on with by --resume", signal, iteration)
            raise Requeue

    def save(self, name: str) -> None:
        """Write a checkpoint; all processes call this together, and all raise if the main one cannot.

        Raises:
            UserError: the disk does not take it.
        """
        if self._before_save is not None:
            self._before_save()
        problem = None
        try:
            self._checkpointer.save(name, iteration=self.trainer.iter)
        except UserError as error:
            problem = str(error)
        problem = comm.all_gather(problem)[0]
        if problem is not None:
            raise UserError(problem)

    def _keep(self, path: str) -> None:
        self._kept = [*(kept for kept in self._kept if kept != path), path]
        if self._max_to_keep is None:
            return
        outdated, self._kept = self._kept[: -self._max_to_keep], self._kept[-self._max_to_keep :]
        files = self._checkpointer.path_manager
        for old in outdated if comm.is_main_process() else ():
            if files.exists(old):
                files.rm(old)


def prepare_folder(folder: str | os.PathLike[str]) -> None:
    """Clear away what a run that was killed has left unfinished in its folder; the log says what."""
    if "://" in str(folder):
        return
    left = remove_unfinished(folder)
    if left:
        names = ", ".join(path.name for path in left)
        logger.warning("%d checkpoint(s) whose writing was interrupted are removed: %s", len(left), names)
    metrics = Path(folder, "metrics.json")
    content = metrics.read_bytes() if metrics.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.warning("%s: its last line was not written to its end and is removed", metrics)
        os.truncate(metrics, whole)
