"""What stands where a file was looked for and not found."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from .errors import list_some

_MOST = 5  # names


def looked_for(path: str | os.PathLike[str]) -> str:
    """Where ``path`` was looked for, and what there is: the files of its ending in its folder, the most alike first.

    Returns:
        ``(looked for /a/b.json; there are: c.json, d.json)``; of a folder that is missing, too, the first of its
        parents that is there.
    """
    path = Path(path).absolute()
    folder = path.parent
    try:
        if not folder.is_dir():
            there = next(parent for parent in folder.parents if parent.is_dir())
            return f"(looked for {path}; its folder is not there, the path goes as far as {there})"
        names = sorted(entry.name for entry in os.scandir(folder) if Path(entry.name).suffix == path.suffix)
    except OSError as error:
        return f"(looked for {path}; its folder cannot be read: {error.strerror})"
    if not names:
        return f"(looked for {path})"
    names.sort(key=lambda name: -difflib.SequenceMatcher(None, name, path.name).ratio())
    return f"(looked for {path}; there are: {list_some(names, _MOST)})"
