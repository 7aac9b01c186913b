"""Folders that all processes of an evaluation write into."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..d2 import comm


def shared_folder(output_dir: str | os.PathLike[str] | None, name: str, suffixes: tuple[str, ...]) -> Path:
    """``<output_dir>/<name>``, or a temporary folder if there is no output folder; the same in every process.

    Files with one of ``suffixes`` that an earlier evaluation left there are removed. All processes must call it.
    """
    made = None
    if comm.is_main_process():
        made = Path(output_dir) / name if output_dir else Path(tempfile.mkdtemp(prefix=f"{name}_"))
        made.mkdir(parents=True, exist_ok=True)
        for old in made.rglob("*"):
            if old.suffix in suffixes and old.is_file():
                old.unlink()
    folder = next(path for path in comm.all_gather(made) if path is not None)  # also waits for the main process
    return folder


def discard_temporary(folder: Path, output_dir: str | os.PathLike[str] | None) -> None:
    """Remove what :func:`shared_folder` made where there was no output folder. For the main process, in the end."""
    if not output_dir:
        shutil.rmtree(folder, ignore_errors=True)
