"""Names of files that come out of files: they stay in the folder that the user named."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable

from ..d2 import PATHS, TRUST_VARIABLE, trusted
from ..errors import UserError

ALLOW = f"if that is meant, allow it by the environment variable {TRUST_VARIABLE}={PATHS}"


def leads_out(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Whether a path leaves a folder, by ``..``, as an absolute path or by a symbolic link, and may not.

    With ``ELSA_DET_TRUST=paths`` in the environment every path may.
    """
    if PATHS in trusted():
        return False
    folder, name = os.path.split(os.fspath(path))
    try:
        inside = _real(os.fspath(root))
        real = os.path.join(_real(folder), name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
    except (OSError, ValueError):  # a null byte, say: no file at all
        return True
    return not (real == inside or real.startswith(inside.rstrip(os.sep) + os.sep))


@functools.lru_cache(maxsize=4096)  # datasets have many files in few folders
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def check_inside(names: Iterable[str], root: str | os.PathLike[str], place: str) -> None:
    """Raise if a file that a dataset lists is not below its folder.

    Args:
        names: paths, absolute or from ``root`` on.
        root: the folder.
        place: the file that lists them, for the message.

    Raises:
        UserError: naming the entry.
    """
    for name in names:
        if not isinstance(name, (str, os.PathLike)) or leads_out(os.path.join(root, name), root):
            raise UserError(f"{place}: file_name {str(name)[:200]!r} leads out of the folder {root}; {ALLOW}")
