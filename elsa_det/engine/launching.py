"""Runs a command in the processes of its job, whoever starts them: our launcher, torchrun, or SLURM.

What differs is who starts a process and who says which one it is (:mod:`.job`). All meet in one store
(:mod:`.meeting`), are watched over in the same way (:mod:`.guard`), and make the same process groups, those of
Detectron2's ``comm`` included.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import distributed as dist
from torch import multiprocessing as mp

from ..config import load_config
from ..d2 import comm
from ..errors import UserError
from .guard import USER_ERRORS, Failure, Guard, claim, tell
from .job import SLURM, Job, read_job
from .meeting import ask, connect, gather_all, interface_towards, listen, wait_for

Main = Callable[[argparse.Namespace], Any]

_END_IN = 10.0  # seconds for the other processes to end by themselves after a failure


@dataclass(frozen=True)
class Options:
    """What a config says about the processes of a job.

    Args:
        device: ``train.device``.
        dist_timeout: seconds until an exchange, or a process that does not come, counts as failed.
        peer_timeout: seconds until a process without a sign of life counts as lost.
    """

    device: str
    dist_timeout: float = 1800.0
    peer_timeout: float = 60.0

    @property
    def on_gpu(self) -> bool:
        """Whether the processes work on GPUs, one each."""
        return self.device.startswith("cuda")


def run_job(main: Main, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of the job that ``args`` and the environment describe.

    A job of one process runs right here. If several are to be started, ``main`` and ``args`` have to pickle. Processes
    talk over NCCL on GPUs, and over Gloo on the CPU.

    Once there are several processes, a failure in one of them ends all, on all machines. It is written to stderr once
    on every machine: user errors as a line ``error: …``, other exceptions with their traceback and rank, a process that
    was killed with its rank and signal.

    Args:
        main: what to do.
        args: of Detectron2's ``default_argument_parser``; its config says ``train.device``, ``train.dist_timeout`` and
            ``train.peer_timeout``.

    Raises:
        UserError, FileNotFoundError: arguments, environment or config cannot be, or the processes cannot meet.
        SystemExit: the job failed, and what there is to say has been said; or ``main`` raised it.
    """
    job = read_job(args)
    if job.world_size == 1:
        main(args)
        return
    try:
        options = read_options(args)
        _check_devices(job, options)
        if job.local_rank is not None:
            _work_here(job, options, main, args)
            return
    except USER_ERRORS:
        if job.local_rank:
            sys.exit(1)  # the first process of the machine says it
        raise
    _launch(job, options, main, args)


def read_options(args: argparse.Namespace) -> Options:
    """What the config of these arguments says about the processes.

    Raises:
        UserError: a value cannot be.
    """
    cfg = load_config(args.config_file, args.opts)

    def seconds(name: str) -> float:
        value = OmegaConf.select(cfg, f"train.{name}", default=getattr(Options, name))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"train.{name}={value!r} must be a number of seconds, more than 0")
        return float(value)

    device = str(OmegaConf.select(cfg, "train.device", default="cpu"))
    return Options(device, seconds("dist_timeout"), seconds("peer_timeout"))


def _check_devices(job: Job, options: Options) -> None:
    if not options.on_gpu:
        return
    if ":" in options.device:
        raise UserError(
            f"train.device={options.device} would put all {job.processes} processes of a machine on one GPU: leave it "
            "at auto, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    there = torch.cuda.device_count()
    if job.processes > there and not _own_gpu_only(job):
        raise UserError(
            f"{job.processes} processes on this machine ({job.started_by}), but it has {there} GPU(s): start fewer, "
            "look at CUDA_VISIBLE_DEVICES, or use the CPU with train.device=cpu"
        )


def _own_gpu_only(job: Job) -> bool:
    """Whether SLURM shows each task a GPU of its own only (``--gpus-per-task 1``)."""
    return job.started_by == SLURM and torch.cuda.device_count() == 1


def _work_here(job: Job, options: Options, main: Main, args: argparse.Namespace) -> None:
    """This process is one of those that torchrun or SLURM started."""
    hosts = job.rank() == 0 and not job.agent_listens
    store = listen(job)[0] if hosts else None
    code = _work(job, options, main, args, hosts_store=hosts)
    del store
    if code:
        sys.exit(code)


def _work(
    job: Job,
    options: Options,
    main: Main,
    args: argparse.Namespace,
    turn: Semaphore | None = None,
    launcher: int | None = None,
    *,
    hosts_store: bool = False,
) -> int:
    """Do this process's part.

    Returns:
        The exit code that ``main`` asked for.
    """
    client = connect(job, options.dist_timeout)
    guard = Guard(job, client, options.peer_timeout, turn, launcher, hosts_store=hosts_store)
    guard.start()
    code = 0
    try:
        _join(job, options, guard)
        try:
            main(args)
        except SystemExit as end:
            if isinstance(end.code, str):
                raise UserError(end.code) from end
            code = int(end.code or 0)
        # rank 0 may evaluate longer than the others: nobody leaves before all are done
        comm.synchronize()
        gc.collect()  # models and trainers in reference cycles hold the group, whose threads must be joined before exit
        dist.destroy_process_group()
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        guard.fail(error)
    guard.leave()
    return code


def _join(job: Job, options: Options, guard: Guard) -> None:
    """Meet the others, and make the process groups."""
    store = connect(job, options.dist_timeout)
    gather_all(store, job, guard.about(), options.dist_timeout)
    interface = interface_towards(job.host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if options.on_gpu:
        torch.cuda.set_device(0 if _own_gpu_only(job) else job.local_rank)
    dist.init_process_group(
        "nccl" if options.on_gpu else "gloo",
        store=dist.PrefixStore("group", store),
        rank=job.rank(),
        world_size=job.world_size,
        timeout=timedelta(seconds=options.dist_timeout),
    )
    comm.create_local_process_group(job.processes)
    comm.synchronize()


def _launch(job: Job, options: Options, main: Main, args: argparse.Namespace) -> None:
    """Start the processes of this machine and watch over them."""
    server = None
    if job.machine == 0:
        server, port = listen(job)
        job = dataclasses.replace(job, port=port)
    store = connect(job, options.dist_timeout)
    context = mp.get_context("spawn")
    turn = context.Semaphore(1)
    left = context.Array("b", job.processes, lock=False)  # which have done their work
    processes = []
    with _environment(job, options):
        for local_rank in range(job.processes):
            own = dataclasses.replace(job, local_rank=local_rank)
            process = context.Process(target=_child, args=(own, options, main, args, turn, left, os.getpid()))
            process.start()
            processes.append(process)
    code = _Supervisor(job, store, turn, left, processes).wait()
    if server is not None and job.machines > 1:
        _keep_store(job, store, failed=code != 0)
    del server
    if code:
        sys.exit(code)


def _child(
    job: Job, options: Options, main: Main, args: argparse.Namespace, turn: Semaphore, left: Any, launcher: int
) -> None:
    """Body of a process that the launcher starts."""
    try:
        code = _work(job, options, main, args, turn, launcher)
    except USER_ERRORS as error:  # it did not reach the store, and so could not tell the job
        if turn.acquire(block=False):
            tell(f"error: {error}")
        os._exit(1)
    left[job.local_rank] = 1
    if code:
        sys.exit(code)


@contextmanager
def _environment(job: Job, options: Options) -> Iterator[None]:
    """What processes inherit that are started within it."""
    ours = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # the guard says what it means that a connection is gone
    if not options.on_gpu:  # as many threads as cores in every process would hinder one another
        ours["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // job.processes))
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _keep_store(job: Job, store: dist.Store, *, failed: bool) -> None:
    """Machine 0 goes last: the others still have to read that the job ended, and why."""
    ranks = range(job.processes, job.world_size)
    if failed:
        wait_for(lambda: store.add("machines heard", 0) >= job.machines - 1, _END_IN)
    else:
        wait_for(lambda: all(store.check([f"left/{rank}"]) for rank in ranks), _END_IN)


class _Supervisor:
    """Waits for the processes of this machine. Of one that could not speak any more, it tells the job."""

    def __init__(self, job: Job, store: dist.Store, turn: Semaphore, left: Any, processes: list[SpawnProcess]) -> None:
        self._job, self._store, self._turn, self._left, self._processes = job, store, turn, left, processes
        self._terminated = False

    def wait(self) -> int:
        """Until all have ended.

        Returns:
            The exit code of the command.
        """
        try:
            with self._passing_on_sigterm():
                code = self._wait()
        except KeyboardInterrupt:  # the processes got it as well
            tell("interrupted")
            code = 130
        finally:
            self._end_all()
        return code

    def _wait(self) -> int:
        running = {process.sentinel: rank for rank, process in enumerate(self._processes)}
        code = 0
        while running:
            for sentinel in wait(list(running)):
                local_rank = running.pop(int(sentinel))  # type: ignore[call-overload,arg-type]
                process = self._processes[local_rank]
                process.join()
                if self._left[local_rank]:
                    code = code or process.exitcode or 0
                    continue
                return self._failed(local_rank)
        return code

    def _failed(self, local_rank: int) -> int:
        process = self._processes[local_rank]
        host = os.uname().nodename
        text = (
            f"rank {self._job.rank(local_rank)} of {self._job.world_size} (process {process.pid} on {host}) "
            f"{_describe_exit(process.exitcode or 0)}; the other processes were ended"
        )
        failure = Failure(text, self._job.machine, host)
        if self._turn.acquire(block=False):  # else it, or another process of this machine, has spoken
            tell(ask(lambda: claim(self._store, failure), failure).seen_from(self._job.machine))
        if self._job.machine:
            ask(lambda: self._store.add("machines heard", 1), 0)
        return 128 + signal.SIGTERM if self._terminated else 1

    def _end_all(self) -> None:
        deadline = time.monotonic() + _END_IN
        for end in (None, SpawnProcess.terminate, SpawnProcess.kill):
            for process in self._processes:
                if process.is_alive() and end is not None:
                    end(process)
            for process in self._processes:
                process.join(max(0.0, deadline - time.monotonic()))
            deadline = time.monotonic() + 2.0

    @contextmanager
    def _passing_on_sigterm(self) -> Iterator[None]:
        """The processes decide what to do about it; without anything of their own they end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(number: int, frame: object) -> None:
            self._terminated = True
            for process in self._processes:
                if process.is_alive():
                    process.terminate()

        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} before its work was done"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ": the system may have been out of memory (dmesg says so)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
