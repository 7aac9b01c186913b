"""What is wrong inside a config file, with the file and the line, and no traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from .errors import UserError

_PACKAGE = Path(__file__).parent


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Within it, whatever the config file ``path`` raises becomes a :class:`UserError`.

    Raises:
        UserError: naming the file, the line and the fault.
    """
    try:
        yield
    except UserError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"config {path}{line} is not YAML: {what}. Correct the file") from error
    except Exception as error:  # a config is code of the user's: anything may come out of it
        syntax = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error  # Detectron2 wraps it
        if isinstance(syntax, SyntaxError):
            near = f": {syntax.text.strip()!r}" if syntax.text else ""
            file = syntax.filename if syntax.filename and Path(syntax.filename).is_file() else path
            raise UserError(f"config {file}, line {syntax.lineno}: {syntax.msg}{near}. Correct the file") from error
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"config {_place(error, path)}: {type(error).__name__}: {first}. Correct the file") from error


def _place(error: Exception, path: str | Path) -> str:
    """The innermost line that a file runs when it is loaded: the config's own, or that of one that it imports."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name == "<module>" and (not _inside_package(frame.filename))
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(path)


def _inside_package(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(_PACKAGE) and not path.is_relative_to(_PACKAGE / "configs")
