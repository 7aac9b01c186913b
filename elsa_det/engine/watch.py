"""Ends all processes of a job, on every machine, once one of them has failed or is gone.

Every process keeps a connection to rank 0 for as long as it works. One that fails says why; of one that is killed the
system closes the connection, and of one whose machine is off or cut off it gives the connection up after
``train.peer_timeout``. Rank 0 tells all others, and they end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ..errors import UserError
from .job import TORCHRUN, Job
from .user_errors import describe

_ANSWER_IN = 5.0  # seconds for rank 0 to answer, and for all to be done after the last exchange
_SEEN_IN = 2.0  # seconds for torchrun to see which process failed, before others do
_CAUSE_IN = 3.0  # seconds in which the cause of a broken exchange is known
_BROKEN = ("connection closed", "connection reset", "broken pipe", "connection refused", "connection was likely closed")
_LATE = ("timed out", "timeout")
_LATE_HINT = ". A process is late, or hangs: train.dist_timeout is how long an exchange waits"


@dataclass(frozen=True)
class _Member:
    """A process, as the others know it."""

    rank: int
    machine: int
    host: str
    name: str


def tell(text: str) -> None:
    """Write to stderr in one piece, so that processes do not write into each other's lines."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Watch:
    """This process's part of the watch.

    Args:
        job: with ``local_rank``.
        store: in which rank 0 leaves the address of the watch.
        peer_timeout: seconds until a process whose machine does not answer counts as gone.
    """

    def __init__(self, job: Job, store: dist.Store, peer_timeout: float) -> None:
        host = socket.gethostname()
        name = f"rank {job.rank} of {job.world_size} (process {os.getpid()} on {host})"
        self._me = _Member(job.rank, job.machine, host, name)
        self._speaks_if_rank_0_is_gone = job.local_rank == (1 if job.machine == 0 else 0)
        self._leaving, self._shown, self._started_by = False, "", job.started_by
        self._server = _Server(job, store, peer_timeout) if job.rank == 0 else None
        address = json.loads(store.get("watch"))
        where = address["host"], address["port"]
        try:
            self._channel = _Channel(socket.create_connection(where, timeout=peer_timeout), peer_timeout)
        except OSError as error:
            raise UserError(
                f"{name} does not reach rank 0 at {where[0]}, port {where[1]}: {error}. A firewall must let all ports "
                "through between the machines of a job"
            ) from error
        os.register_at_fork(after_in_child=self._close)
        self._channel.send({"token": address["token"], **self._me.__dict__})
        self._channel.receive()  # from here on rank 0 tells this process of every failure
        self._thread = threading.Thread(target=self._listen, daemon=True, name="watch")
        self._thread.start()

    def leave(self) -> None:
        """Stop: the work is done. Rank 0 waits until the others say so as well."""
        self._leaving = True
        self._send({"done": True})
        if self._server is not None:
            self._server.all_done.wait(_ANSWER_IN)

    def fail(self, error: BaseException) -> NoReturn:
        """End the job because of an exception in this process; the exit code is 1, or 130 after Ctrl-C."""
        if isinstance(error, KeyboardInterrupt):
            self._leaving = True
            self._send({"failed": "interrupted"})
            os._exit(130)
        text = describe(error)
        if text is None:
            message = str(error).strip().partition("\n")[0]
            if isinstance(error, (RuntimeError, ConnectionError)) and any(p in message.lower() for p in _BROKEN):
                time.sleep(_CAUSE_IN)  # the other thread ends this process as soon as the cause is known
            if isinstance(error, (RuntimeError, TimeoutError)) and any(p in message.lower() for p in _LATE):
                message += _LATE_HINT
            text = f"{self._me.name} failed: {type(error).__name__}: {message}"
            self._shown = "".join(traceback.format_exception(error))
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # for torchrun's summary
            get_error_handler().record_exception(error)
        self._send({"failed": text})
        self._thread.join(_ANSWER_IN)  # in which it ends this process
        self._end(text, speaks=True)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # of rank 0 that is gone the thread that listens knows
            self._channel.send(message)

    def _close(self) -> None:
        """In forks, such as the workers of a loader: a connection would stay open as long as any of them lives."""
        self._channel.close()
        if self._server is not None:
            self._server.close_all()

    def _listen(self) -> None:
        try:
            answer = self._channel.receive()
        except OSError:
            answer = {}
        if answer:
            if answer["rank"] == self._me.rank:
                self._end(self._shown + f"error: {answer['text']}", speaks=True)
            where = "" if answer["host"] == self._me.host else f"on {answer['host']}: "
            self._end(f"error: {where}{answer['text']}", speaks=answer["speaks"], after_another=True)
        if not self._leaving:
            text = "error: rank 0 is gone: it was killed, or its machine is off or not reachable"
            self._end(text, speaks=self._speaks_if_rank_0_is_gone, after_another=True)

    def _end(self, text: str, *, speaks: bool, after_another: bool = False) -> NoReturn:
        """Without clean-up, which may hang in an exchange for ever."""
        try:
            if speaks:
                tell(text)
            if after_another and self._started_by == TORCHRUN:
                time.sleep(_SEEN_IN)
        finally:
            os._exit(1)


class _Channel:
    """A connection over which dicts are sent.

    Args:
        connection: it is the channel's own from now on.
        peer_timeout: seconds after which the system gives up the connection to a machine that does not answer.
    """

    def __init__(self, connection: socket.socket, peer_timeout: float) -> None:
        self._connection, self._received = connection, b""
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        pause, often = peer_timeout / 2, 4
        for name, value in (("TCP_KEEPIDLE", pause), ("TCP_KEEPINTVL", pause / often), ("TCP_KEEPCNT", often)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, int(value)))

    def send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next one; empty once the other side has closed."""
        while b"\n" not in self._received:
            part = self._connection.recv(4096)
            if not part:
                return {}
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        self._connection.close()


class _Server(socketserver.ThreadingTCPServer):
    """Rank 0's part: hears of every process, and tells all of the first failure."""

    daemon_threads = True
    request_queue_size = 1024
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, job: Job, store: dist.Store, peer_timeout: float) -> None:
        self.all_done = threading.Event()
        self.peer_timeout = peer_timeout
        self.token = secrets.token_hex(16)
        self._world_size, self._done = job.world_size, 0
        self._lock = threading.Lock()
        self._answer: dict[str, Any] = {}  # once there is a failure
        self._members: dict[int, tuple[_Member, _Channel]] = {}
        super().__init__(("", 0), _Connection)
        address = {"host": own_address(job.host), "port": self.server_address[1], "token": self.token}
        threading.Thread(target=self.serve_forever, daemon=True, name="watch of all").start()
        store.set("watch", json.dumps(address))

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def add(self, member: _Member, channel: _Channel) -> None:
        with self._lock:
            self._members[member.rank] = member, channel
            channel.send({"added": member.rank})
            if self._answer:
                channel.send({**self._answer, "speaks": False})

    def done(self, member: _Member) -> None:
        with self._lock:
            del self._members[member.rank]
            self._done += 1
            if self._done == self._world_size:
                self.all_done.set()

    def failed(self, member: _Member, text: str, *, itself: bool) -> None:
        """Tell all; ``itself``: the process that failed says so, and shows more."""
        with self._lock:
            if self._answer:
                return
            if not itself:
                del self._members[member.rank]
            speakers = {other.machine: rank for rank, (other, _) in sorted(self._members.items(), reverse=True)}
            if itself:
                speakers[member.machine] = member.rank
            self._answer = {"text": text, "rank": member.rank, "host": member.host}
            for rank, (other, channel) in sorted(self._members.items(), reverse=True):  # this process ends last
                with contextlib.suppress(OSError):
                    channel.send({**self._answer, "speaks": speakers[other.machine] == rank})

    def close_all(self) -> None:
        self.socket.close()
        for _, channel in self._members.values():
            channel.close()


class _Connection(socketserver.BaseRequestHandler):
    """The connection to one process."""

    server: _Server

    def handle(self) -> None:
        channel = _Channel(self.request, self.server.peer_timeout)
        hello = channel.receive()
        if hello.pop("token", None) != self.server.token:
            return
        member = _Member(**hello)
        self.server.add(member, channel)
        try:
            message = channel.receive()
            text = f"{member.name} is gone: it was killed, or has ended without a word"
        except OSError as error:
            message = {}
            text = (
                f"{member.name} is gone: {error.strerror}. Its machine is off, or has not been reachable for "
                f"{self.server.peer_timeout:.0f} s (train.peer_timeout)"
            )
        if "done" in message:
            self.server.done(member)
        else:
            self.server.failed(member, message.get("failed", text), itself="failed" in message)


def own_address(host: str) -> str:
    """The address of this machine under which those know it that reach ``host``; ``host`` itself if it is here."""
    family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)  # sends nothing
        own = probe.getsockname()[0]
    return host if own == where[0] or own.startswith("127.") or own == "::1" else own
