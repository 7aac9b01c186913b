"""Ends all processes of a job once one of them has failed, with one message on each machine."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import NoReturn

from torch import distributed as dist

from ..errors import UserError
from .job import Job
from .meeting import about_peer, ask, wait_for

#: what the user is told without a traceback
USER_ERRORS = (UserError, FileNotFoundError)
_POLL = 0.5  # seconds between looks at the store
_CAUSE_IN = 5.0  # seconds in which the cause of a broken connection is known
_HEARD_IN = 5.0  # seconds for the others to read of a failure before the store goes
_BROKEN = ("connection closed", "connection reset", "broken pipe", "connection refused", "connection was likely closed")
_LATE = ("timed out", "timeout")


@dataclass(frozen=True)
class Failure:
    """Why a job ended.

    Args:
        text: the message.
        machine: number of the machine where it happened.
        host: name of that machine.
    """

    text: str
    machine: int
    host: str

    def seen_from(self, machine: int) -> str:
        """The line for the user of a machine."""
        return f"error: {self.text}" if machine == self.machine else f"error: on {self.host}: {self.text}"


def claim(store: dist.Store, failure: Failure) -> Failure:
    """Tell the job of a failure.

    Returns:
        The failure that the job ends with: this one, or one that came before.
    """
    return Failure(**json.loads(store.compare_set("failure", "", json.dumps(asdict(failure)))))


def known_failure(store: dist.Store) -> Failure | None:
    """The failure that the job ends with, if there is one."""
    return Failure(**json.loads(store.get("failure"))) if store.check(["failure"]) else None


def tell(text: str) -> None:
    """Write to stderr in one piece, so that processes do not write into each other's lines."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Guard:
    """Watches over the job from within one of its processes, in threads of its own.

    It ends the process (exit code 1, without clean-up: it may hang in an exchange for ever) when another one has
    failed, has vanished, has not been heard of, or when the store is gone.

    Args:
        job: with ``local_rank``.
        store: client of the job's store that nothing else uses.
        silence: seconds without a sign of life after which a process, or the store, counts as lost.
        turn: taken by the one process of the machine that speaks; None agrees on it through the store.
        launcher: process id of the launcher, which watches over its processes itself; None if there is none.
        hosts_store: the store ends with this process.
    """

    def __init__(
        self,
        job: Job,
        store: dist.Store,
        silence: float,
        turn: Semaphore | None = None,
        launcher: int | None = None,
        *,
        hosts_store: bool = False,
    ) -> None:
        self._job, self._store, self._silence = job, store, silence
        self._turn, self._launcher, self._hosts_store = turn, launcher, hosts_store
        self._rank, self._host = job.rank(), os.uname().nodename
        self._stopped, self._answered = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=f, daemon=True, name="guard") for f in (self._watch, self._time)]
        self._beats, self._peer_beat, self._peer_silent = 0, b"", 0.0

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Stop watching, and let the others know that this process ends because its work is done."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._store.set(f"left/{self._rank}", "1")
        if self._hosts_store:
            wait_for(lambda: all(self._has_left(rank) for rank in range(self._job.world_size)), _HEARD_IN)

    def about(self) -> dict[str, object]:
        """What the others need to know to watch this process: see :func:`~.meeting.gather_all`."""
        return {"host": self._host, "pid": os.getpid(), "pids_of": _pid_namespace()}

    def fail(self, error: BaseException) -> NoReturn:
        """End the job because of an exception in this process."""
        text = str(error)
        shown = ""
        if not isinstance(error, USER_ERRORS):
            low = text.lower()
            if isinstance(error, (RuntimeError, ConnectionError)) and any(part in low for part in _BROKEN):
                time.sleep(_CAUSE_IN)  # the threads end this process as soon as they know the cause
            shown = "".join(traceback.format_exception(error))
            text = f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else '(no message)'}"
            if isinstance(error, (RuntimeError, TimeoutError)) and any(part in low for part in _LATE):
                text += ". A process that is late, or hangs: train.dist_timeout is how long an exchange waits"
            text = f"{self._name(self._rank)} failed: {text}"
        self._end(self._own(text), shown)

    def _own(self, text: str) -> Failure:
        return Failure(text, self._job.machine, self._host)

    def _name(self, rank: int, about: dict[str, object] | None = None) -> str:
        about = self.about() if about is None else about
        return f"rank {rank} of {self._job.world_size} (process {about['pid']} on {about['host']})"

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL):
            try:
                failure, known = self._look()
            except RuntimeError as error:
                if self._stopped.is_set():
                    return
                who = "the launcher" if self._launcher is not None else "rank 0"
                self._end(
                    self._own(
                        f"{who} of machine 0, where the processes meet ({self._job.address}), is gone: "
                        f"{str(error).splitlines()[0]}"
                    ),
                    store_is_there=False,
                )
            self._answered.set()
            if failure is not None:
                self._end(failure, known=known)

    def _look(self) -> tuple[Failure | None, bool]:
        """What is to end the job, and whether the job knows of it already."""
        self._beats += 1
        self._store.set(f"beat/{self._rank}", str(self._beats))
        failure = known_failure(self._store)
        if failure is not None:
            return failure, True
        text = self._launcher_gone() if self._launcher is not None else self._vanished()
        text = text or self._silent()
        return (None if text is None else self._own(text)), False

    def _launcher_gone(self) -> str | None:
        if os.getppid() == self._launcher:
            return None
        return f"the launcher (process {self._launcher} on {self._host}) is gone, and with it its processes"

    def _vanished(self) -> str | None:
        """Another process of this machine that ended before its work did. Who started it knows how; we only see it."""
        first = self._job.machine * self._job.processes
        for rank in range(first, first + self._job.processes):
            about = about_peer(self._store, rank) if rank != self._rank else {}
            if not about or about["pids_of"] != _pid_namespace() or _runs(int(str(about["pid"]))):
                continue
            if not self._has_left(rank) and not known_failure(self._store):
                return f"{self._name(rank, about)} ended before its work was done; how, {self._job.started_by} says"
        return None

    def _silent(self) -> str | None:
        """The next process, wherever it is, if nothing has come from it for long. Own pauses do not count."""
        rank = (self._rank + 1) % self._job.world_size
        if not self._store.check([f"beat/{rank}"]) or self._has_left(rank):
            return None
        beat = self._store.get(f"beat/{rank}")
        self._peer_silent = 0.0 if beat != self._peer_beat else self._peer_silent + _POLL
        self._peer_beat = beat
        if self._peer_silent <= self._silence:
            return None
        about = about_peer(self._store, rank) or {"pid": "?", "host": "?"}
        return (
            f"{self._name(rank, about)} has given no sign of life for {self._silence:.0f} s (train.peer_timeout): its "
            "machine is off, or not reachable, or the process stands still"
        )

    def _has_left(self, rank: int) -> bool:
        return self._store.check([f"left/{rank}"])

    def _time(self) -> None:
        """The store may also hang: the other thread then waits for its answer."""
        silent = 0.0
        while not self._stopped.wait(_POLL):
            silent = 0.0 if self._answered.is_set() else silent + _POLL
            self._answered.clear()
            if silent > self._silence:
                text = f"{self._job.address} has not answered for {self._silence:.0f} s (train.peer_timeout): machine 0"
                self._end(self._own(f"{text} is off, or not reachable"), store_is_there=False)

    def _end(self, failure: Failure, shown: str = "", *, known: bool = False, store_is_there: bool = True) -> NoReturn:
        try:
            speaks = self._takes_turn(store_is_there)
            if store_is_there and not known:
                first = ask(lambda: claim(self._store, failure), failure)
                shown = shown if first == failure else ""
                failure = first
            if speaks:
                tell(shown + failure.seen_from(self._job.machine))
            if store_is_there:
                ask(self._wait_until_heard, None)
        finally:
            os._exit(1)

    def _takes_turn(self, store_is_there: bool) -> bool:
        if self._turn is not None:
            return self._turn.acquire(block=False)
        alone = self._job.local_rank == 0
        return ask(lambda: self._store.add(f"turn/{self._job.machine}", 1) == 1, alone) if store_is_there else alone

    def _wait_until_heard(self) -> None:
        self._store.add("heard", 1)
        if self._hosts_store:
            wait_for(lambda: self._store.add("heard", 0) >= self._job.world_size, _HEARD_IN)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _pid_namespace() -> str:
    """Processes with the same one can look at each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown, of {os.getpid()}"
