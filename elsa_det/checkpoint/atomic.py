"""Files that are there as a whole or not at all, whatever stops the writing of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..errors import UserError

#: ending of a file that is being written; none of these is ever read
UNFINISHED = ".part"


class _Recording:
    """A file that remembers what the disk said: PyTorch makes a RuntimeError of it that does not."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_atomically(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Write a file beside its place, let the disk confirm it, and move it there; what was there before is replaced.

    At every moment ``path`` is either what it was or complete, also after a kill or a loss of power. What a kill leaves
    behind ends in ``.part``: see :func:`remove_unfinished`.

    Args:
        path: the file; its folder exists.
        write: given a binary file to ``write()`` to.

    Raises:
        UserError: the disk is full or does not take the file; nothing new is left behind.
    """
    path = Path(path)
    part = path.with_name(path.name + UNFINISHED)
    recording = None
    try:
        with open(part, "wb") as file:
            recording = _Recording(file)
            write(recording)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _confirm_folder(path.parent)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        said = error if isinstance(error, OSError) else recording.error if recording is not None else None
        if said is None:
            raise  # no fault of the disk
        raise UserError(
            f"{path} could not be written: {said.strerror or said}. What was there before is as it was: make room or "
            "check the disk, then go on with --resume. Fewer checkpoints (train.checkpointer.max_to_keep) take less"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _confirm_folder(folder: Path) -> None:
    """Let the disk confirm the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete what an interrupted :func:`write_atomically` left in a folder.

    Returns:
        The files that were deleted.
    """
    left = sorted(path for path in Path(folder).glob(f"*{UNFINISHED}") if _is_ours(path))
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _is_ours(path: Path) -> bool:
    whole = path.name.removesuffix(UNFINISHED)
    return path.is_file() and (whole.endswith(".pth") or whole == "last_checkpoint")
