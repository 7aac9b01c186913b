"""The checkpointer of training and prediction: Detectron2's, with files read without running code from them."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..d2 import DetectionCheckpointer, comm
from .atomic import write_atomically
from .reading import CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

#: checkpoints of a run that are written every so many iterations
NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with files that are whole, and read without running code from them.

    * Detectron2's reads pickles without restriction; this one reads what :func:`read_checkpoint` does.
    * Files, ``last_checkpoint`` included, are written beside their place and moved there once the disk has them: see
      :func:`~.atomic.write_atomically`. (On places that are no folders, such as ``s3://…``, Detectron2 writes.)
    * Where the last checkpoint of a folder is damaged, :meth:`resume_or_load` says so and takes the one before it.

    Raises, in ``load`` and ``resume_or_load``:
        CheckpointError: the file is damaged, or holds something else than data.
    """

    #: the file that :meth:`resume_or_load` went on from
    resumed_from: str = ""
    _checked: tuple[str, Any] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model and checkpointables to ``name.pth``, on the main process.

        Raises:
            UserError: the disk does not take the file; the checkpoints that were there still are.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:
            super().save(name, **kwargs)
            return
        held = {"model": self.model.state_dict()}
        held.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save({**held, **kwargs}, file))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Let ``last_checkpoint`` name a file of the folder."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        name = last_filename_basename.encode()
        write_atomically(Path(self.save_dir, "last_checkpoint"), lambda file: file.write(name))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """With ``resume``, load the last checkpoint of the folder that is complete; else, or without one, ``path``.

        Raises:
            CheckpointError: the last checkpoint is damaged, and there is none before it.
        """
        if not (resume and self.has_checkpoint()) or "://" in self.save_dir:
            return super().resume_or_load(path, resume=resume)
        chosen: tuple[str, CheckpointError | FileNotFoundError | None] = ("", None)
        if comm.is_main_process():
            try:
                chosen = self._last_complete(), None
            except (CheckpointError, FileNotFoundError) as error:
                chosen = "", error
        self.resumed_from, problem = comm.all_gather(chosen)[0]
        if problem is not None:
            raise problem
        try:
            return self.load(self.resumed_from)
        finally:
            self._checked = None

    def _last_complete(self) -> str:
        tagged = self.get_checkpoint_file()
        try:
            self._check(tagged)
            return tagged
        except (CheckpointError, FileNotFoundError) as error:
            problem = error
        for path in self._numbered(before=tagged):
            try:
                self._check(path)
            except CheckpointError as error:
                logger.warning("%s is damaged as well: %s", path, error)
                continue
            logger.warning(
                "The last checkpoint cannot be used: %s. Going back to %s, the one before it.", problem, path
            )
            self.tag_last_checkpoint(os.path.basename(path))
            return path
        raise problem

    def _numbered(self, before: str) -> list[str]:
        """The run's other checkpoints that may come before a file, the latest first."""
        last = NUMBERED.fullmatch(os.path.basename(before))
        found = numbered_checkpoints(self.save_dir)
        return [str(path) for iteration, path in reversed(found) if last is None or iteration < int(last[1])]

    def _check(self, path: str) -> None:
        """Read a file as a whole, checksums included; what is read is kept for :meth:`load`."""
        if os.path.isdir(path):
            raise CheckpointError(f"{Path(self.save_dir, 'last_checkpoint')} names no checkpoint")
        held = read_checkpoint(path)
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile:  # PyTorch's format of before 2020 has no checksums
            damaged = None
        if damaged is not None or not isinstance(held, dict) or "model" not in held:
            what = f"{damaged} in it is damaged" if damaged else "it is no checkpoint of a training"
            raise CheckpointError(f"{path} cannot be used: {what}")
        if path.endswith(".pth"):
            self._checked = path, held

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._checked is not None and self._checked[0] == str(filename):
            return self._checked[1]
        if str(filename).endswith((".pkl", ".pyth")):
            read_checkpoint(filename)  # refuses what the provider, which knows these formats, would run
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        return read_checkpoint(f)


def numbered_checkpoints(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """The ``model_0001199.pth``, … of a run, with their iterations, ascending."""
    found = ((NUMBERED.fullmatch(path.name), path) for path in Path(folder).glob("model_*.pth"))
    return sorted((int(match[1]), path) for match, path in found if match)
