"""The folder of a run, looked at before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError


def check_writable(folder: str) -> None:
    """Raise if ``folder`` cannot be made or written to; nothing is made.

    Raises:
        UserError: naming what is in the way.
    """
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "not writable" if there.is_dir() else "a file"
        raise UserError(f"train.output_dir={folder} cannot be written: {there} is {what}. Choose another folder")
