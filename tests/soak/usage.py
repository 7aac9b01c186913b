"""What a process and its children take of memory, files and shared memory, and whether that grows. For Linux."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import multiprocessing
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_SHARED = "/dev/shm/"


@dataclasses.dataclass(frozen=True)
class Usage:
    """At one iteration.

    Args:
        iteration: how many there were.
        seconds: since the first.
        rss: resident memory of the process, in bytes. It also grows with garbage that Python has yet to collect, and
            with freed memory that the C library keeps.
        held: the same without these two.
        workers_rss: the same of its children together; pages that they share with it are counted again.
        workers: how many children there are.
        fds: open file descriptors of all.
        shm: bytes in /dev/shm that they have mapped, each segment once, those without a name included.
    """

    iteration: int
    seconds: float
    rss: int
    held: int
    workers_rss: int
    workers: int
    fds: int
    shm: int


#: what is judged: how much a quantity may grow with each iteration, on the long run
LIMITS = {"held": 10_000.0, "workers_rss": 10_000.0, "fds": 0.002, "shm": 1_000.0}


def usage(iteration: int, seconds: float = 0.0) -> Usage:
    """What this process and the children that :mod:`multiprocessing` started take now."""
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    own = os.getpid()
    resident = _resident(own)
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc
        trim(0)
    segments: dict[str, int] = {}
    for pid in (own, *children):
        for inode, size in _shared_segments(pid).items():
            segments[inode] = max(size, segments.get(inode, 0))
    return Usage(
        iteration=iteration,
        seconds=seconds,
        rss=resident,
        held=_resident(own),
        workers_rss=sum(map(_resident, children)),
        workers=len(children),
        fds=sum(map(_open_files, (own, *children))),
        shm=sum(segments.values()),
    )


def growth(samples: Sequence[Usage], name: str) -> float:
    """How much a quantity grows with each iteration: the median of the slopes between all pairs (Theil and Sen).

    Single samples that stand out, as in an evaluation, do not move it.
    """
    x = np.array([sample.iteration for sample in samples], dtype=float)
    y = np.array([getattr(sample, name) for sample in samples], dtype=float)
    first, second = np.triu_indices(len(x), k=1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def judge(samples: Sequence[Usage], warm_up: int, limits: Mapping[str, float] = LIMITS) -> tuple[dict, list[str]]:
    """The growth of each quantity after ``warm_up`` iterations, and what is wrong: those beyond their limits.

    Raises:
        ValueError: fewer than ten samples are left to judge.
    """
    judged = [sample for sample in samples if sample.iteration > warm_up]
    if len(judged) < 10:
        raise ValueError(f"{len(judged)} samples after {warm_up} iterations are too few to judge: take 10 or more")
    slopes = {name: growth(judged, name) for name in limits}
    faults = [
        f"{name} grows by {slopes[name]:.4g} an iteration, more than {limit:g}"
        for name, limit in limits.items()
        if slopes[name] > limit
    ]
    return slopes, faults


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):  # it has just ended
        return 0


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _shared_segments(pid: int) -> dict[str, int]:
    """Bytes mapped of each file in /dev/shm, by its inode."""
    found: dict[str, int] = {}
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        if _SHARED in line:
            place, _, _, _, inode, _ = line.split(maxsplit=5)
            begin, end = (int(address, 16) for address in place.split("-"))
            found[inode] = found.get(inode, 0) + end - begin
    return found
