"""Loggers with handlers on the terminal and in a file, and messages that do not repeat."""

from __future__ import annotations

import atexit
import copy
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import IO, Any

from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_HERE = __name__.rsplit(".", 2)[0]  # elsa_det.d2lite, the parent of all our loggers
_DATES = "%m/%d %H:%M:%S"
_BADGES = {
    logging.WARNING: colored("WARNING", "red", attrs=["blink"]),
    logging.ERROR: colored("ERROR", "red", attrs=["blink", "underline"]),
    logging.CRITICAL: colored("ERROR", "red", attrs=["blink", "underline"]),
}


class _Formatter(logging.Formatter):
    """Short logger names, and on a colour terminal a badge before what is wrong."""

    def __init__(self, form: str, short_names: Mapping[str, str], badges: bool) -> None:
        super().__init__(form, datefmt=_DATES)
        self._short_names = {f"{long}.": f"{short}." if short else "" for long, short in short_names.items()}
        self._badges = badges

    def formatMessage(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)  # other handlers get the full name
        for long, short in self._short_names.items():
            record.name = record.name.replace(long, short)
        message = super().formatMessage(record)
        return f"{_BADGES[record.levelno]} {message}" if self._badges and record.levelno in _BADGES else message


@functools.lru_cache  # a second call with the same arguments adds no second handler
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Let a logger write to the terminal (rank 0 only) and to a file, at level DEBUG.

    Args:
        output: a file if it ends in ``.txt`` or ``.log``, else a folder for ``log.txt``; ranks above 0 add ``.rankN``.
            None writes no file.
        distributed_rank: rank of this process.
        color: whether the terminal gets colours.
        name: which logger, with its children. ``detectron2`` stands for d2lite's own loggers as well.
        abbrev_name: what to write instead of ``name``; "" drops it. Default: "d2" for "detectron2", else ``name``.
        enable_propagation: whether messages go on to the parent loggers.
        configure_stdout: whether to write to the terminal at all.
    """
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    names = [name, _HERE] if name == "detectron2" else [name]
    short_names = dict.fromkeys(names, abbrev_name)
    plain = _Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", short_names, badges=False)

    handlers: list[logging.Handler] = []
    if configure_stdout and distributed_rank == 0:
        terminal = logging.StreamHandler(stream=sys.stdout)
        green = colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s"
        terminal.setFormatter(_Formatter(green, short_names, badges=True) if color else plain)
        handlers.append(terminal)
    if output is not None:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            path += f".rank{distributed_rank}"
        file = logging.StreamHandler(_log_file(path))
        file.setFormatter(plain)
        handlers.append(file)

    for each in names:
        logger = logging.getLogger(each)
        logger.setLevel(logging.DEBUG)
        logger.propagate = enable_propagation
        for handler in handlers:
            handler.setLevel(logging.DEBUG)
            logger.addHandler(handler)
    return logging.getLogger(name)


@functools.cache  # loggers that write to the same file share the handle
def _log_file(path: str) -> IO[str]:
    folder = os.path.dirname(path)
    if folder:
        PathManager.mkdirs(folder)
    # a remote file gets a buffer, so that a line is not an upload
    handle = PathManager.open(path, "a", buffering=1024 * 1024 if "://" in path else -1)
    atexit.register(handle.close)
    return handle


_CALLS: Counter = Counter()
_LAST_TIME: dict[tuple, float] = {}


def _find_caller() -> tuple[str, tuple[str, int, str]]:
    """The module that logs, and the place in it, from the stack outside this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "__main__")
    return _HERE if module == "__main__" else module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log the first ``n`` times only.

    Args:
        lvl: level, such as ``logging.WARNING``.
        msg: what to say.
        n: how often.
        name: which logger; default: the one of the calling module.
        key: what makes two calls the same: ``"caller"`` (the line), ``"message"``, or a tuple of both.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    if not keys or set(keys) - {"caller", "message"}:
        raise ValueError(f"key={key!r} is not understood: use 'caller', 'message', or a tuple of them.")
    module, caller = _find_caller()
    counted: tuple[Any, ...] = (caller if "caller" in keys else None, msg if "message" in keys else None)
    _CALLS[counted] += 1
    if _CALLS[counted] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from the same line."""
    module, caller = _find_caller()
    if _CALLS[caller] % n == 0:
        logging.getLogger(name or module).log(lvl, msg)
    _CALLS[caller] += 1


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log from the same line at most once in ``n`` seconds."""
    module, caller = _find_caller()
    now = time.time()
    if now - _LAST_TIME.get(caller, float("-inf")) >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LAST_TIME[caller] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """A table of two rows, keys over values, for a handful of results."""
    return tabulate([list(small_dict.values())], list(small_dict), "pipe", ".3f", numalign="center", stralign="center")
