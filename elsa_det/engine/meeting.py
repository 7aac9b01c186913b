"""Where the processes of a job meet: a key-value store at one address, and who has come there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch import distributed as dist

from ..errors import UserError
from .job import LAUNCHER, Job

logger = logging.getLogger(__name__)

_RETRY, _SAY_AGAIN = 0.3, 30.0  # seconds
_SIOCGIFADDR = 0x8915


def listen(job: Job) -> tuple[dist.TCPStore, int]:
    """Open the meeting point of the job here, on machine 0.

    Returns:
        the store, which is open as long as it is kept, and the port.

    Raises:
        UserError: the address is not of this machine, or the port is taken.
    """
    alone = job.machines == 1
    try:
        family, _, _, _, where = socket.getaddrinfo(job.host, job.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(1024)
    except OSError as error:
        free = "leave --dist-url out, which finds a free one" if alone else "choose another one, on all machines"
        remedy = f"an earlier run may still be there; {free}" if job.started_by == LAUNCHER else "set MASTER_PORT"
        raise UserError(
            f"machine 0 cannot listen at {job.address}: {error.strerror}. The host must be this machine's, and the "
            f"port free: {remedy}"
        ) from error
    port = listener.getsockname()[1]
    # waiting for the others is done by gather_all, which says who is missing
    store = dist.TCPStore(
        job.host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), timeout=_LONG
    )
    return store, port


_LONG = timedelta(hours=1)  # of single answers of the store, for which the guard has a limit of its own


def connect(job: Job, timeout: float) -> dist.Store:
    """The store of the job, as a client of its own.

    Args:
        timeout: seconds for machine 0 to be there.

    Raises:
        UserError: nobody answers at the address.
    """
    began = said = time.monotonic()
    while True:
        try:
            socket.create_connection((job.host, job.port), timeout=min(timeout, 10)).close()
            break
        except OSError as error:
            now, why = time.monotonic(), error.strerror or str(error)
            if now - began > timeout or isinstance(error, socket.gaierror):
                raise UserError(
                    f"nobody answers at {job.address} for {now - began:.0f} s: {why}. Machine 0 must run, be reachable "
                    "from here under this address, and have the port open (firewall); train.dist_timeout is how long "
                    "is waited"
                ) from error
            if now - said > _SAY_AGAIN:
                said = now
                logger.warning("Waiting for machine 0 at %s: %s", job.address, why)
            time.sleep(_RETRY)
    store = dist.TCPStore(job.host, job.port, is_master=False, wait_for_workers=False, timeout=_LONG)
    return dist.PrefixStore(f"elsa_det/{job.attempt}", store)


def gather_all(store: dist.Store, job: Job, about: dict[str, object], timeout: float) -> None:
    """Wait until every process of the job is here.

    Args:
        about: what the others may read of this one.
        timeout: seconds.

    Raises:
        UserError: one does not come, a rank comes twice, or a machine was started for a job of another size.
    """
    size = f"{job.machines} x {job.processes}"
    first = store.compare_set("size", "", size).decode()
    if first != size:
        raise UserError(
            f"this machine was started for {size} processes (machines x processes), another one for {first}: "
            "--num-machines and --num-gpus must be the same on all machines"
        )
    rank = job.rank()
    if store.add(f"claim/{rank}", 1) > 1:
        raise UserError(
            f"rank {rank} has come twice: every machine needs a --machine-rank of its own, from 0 to {job.machines - 1}"
        )
    store.set(f"here/{rank}", json.dumps(about))
    waiting = list(range(job.world_size))

    def all_here() -> bool:
        waiting[:] = [r for r in waiting if not store.check([f"here/{r}"])]
        return not waiting

    def say() -> None:
        if rank == 0:
            logger.warning("Waiting for %s", _who(job, waiting))

    if not wait_for(all_here, timeout, say):
        raise UserError(
            f"{_who(job, waiting)} did not come within {timeout:.0f} s (train.dist_timeout): the command must be "
            f"started on all {job.machines} machines, with {job.address} reachable from each"
        )


def about_peer(store: dist.Store, rank: int) -> dict[str, object]:
    """What another process said of itself in :func:`gather_all`; empty if it is not there yet."""
    return json.loads(store.get(f"here/{rank}")) if store.check([f"here/{rank}"]) else {}


def _who(job: Job, ranks: list[int]) -> str:
    if job.machines == 1:
        return f"rank {', '.join(map(str, ranks))}"
    machines = sorted({rank // job.processes for rank in ranks})
    return f"machine {', '.join(map(str, machines))} (rank {', '.join(map(str, ranks))})"


def wait_for(done: Callable[[], bool], timeout: float, say: Callable[[], None] | None = None) -> bool:
    """Ask until it is so, or the seconds are over; ``say`` is called now and then meanwhile."""
    began = said = time.monotonic()
    pause = 0.01
    while not done():
        now = time.monotonic()
        if now - began > timeout:
            return False
        if say is not None and now - said > _SAY_AGAIN:
            said = now
            say()
        time.sleep(pause)
        pause = min(2 * pause, _RETRY)
    return True


T = TypeVar("T")


def ask(store_call: Callable[[], T], otherwise: T, seconds: float = 5.0) -> T:
    """What the store answers, or something else if it is gone or does not answer within some seconds."""
    answers: list[T] = []

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(store_call())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else otherwise


def interface_towards(host: str) -> str | None:
    """Name of the network interface that reaches an IPv4 host; None where it cannot be told.

    Gloo takes that of the machine's host name otherwise, which is often the loopback and reaches no other machine.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None
