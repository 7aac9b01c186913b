"""Signals with which a batch system announces that a job is to end: SIGTERM and SIGUSR1."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType

from ..d2 import comm

logger = logging.getLogger(__name__)

#: exit code of a training that has saved its state and waits to be started again with ``--resume``: EX_TEMPFAIL
REQUEUE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Requeue(BaseException):  # not an Exception: the trainers would log it as a failure
    """Ends the loop of a trainer whose state is saved, because a signal asked for it."""


class StopSignals:
    """Remembers that a signal came, until the iteration ends."""

    def __init__(self) -> None:
        self._received: str | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Within it, SIGTERM and SIGUSR1 are remembered; elsewhere than in the main thread nothing changes."""
        with _handled(self._remember):
            yield

    def _remember(self, number: int, _: FrameType | None) -> None:
        self._received = signal.Signals(number).name

    def agreed(self) -> str | None:
        """Name of the signal that some process received, the same on all; all call it together."""
        return next((name for name in comm.all_gather(self._received) if name is not None), None)


@contextlib.contextmanager
def passed_to(processes: Iterable[BaseProcess]) -> Iterator[list[int]]:
    """Within it, SIGTERM and SIGUSR1 go to processes that this one has started, and do not end it.

    Yields:
        The signals that came so far.
    """
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for child in processes:
            if child.is_alive() and child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    with _handled(pass_on):
        yield received


@contextlib.contextmanager
def _handled(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
