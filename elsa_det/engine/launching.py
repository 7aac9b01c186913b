"""Runs a command in the processes of its job, whoever starts them: our launcher, torchrun, or SLURM.

What differs is who starts a process and who says which one it is (:mod:`.job`). All meet in the same way
(:mod:`.rendezvous`), and end together if one fails (:mod:`.watch`).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import distributed as dist

from ..config import load_config
from ..d2 import comm
from ..errors import UserError
from .job import Job, read_job
from .rendezvous import Options, join, listen, own_gpu_only
from .stop_signals import REQUEUE, passed_to
from .user_errors import describe, show_user_errors_briefly
from .watch import Watch, tell

Main = Callable[[argparse.Namespace], Any]

_START_METHOD = "spawn"  # CUDA does not survive a fork
_PR_SET_PDEATHSIG = 1
_POLL = 0.1  # seconds between looks at whether a process has ended
_END_IN = 10.0  # seconds for the other processes to end by themselves after a failure


def run_job(main: Main, args: argparse.Namespace) -> int:
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

    Returns:
        The exit code: 0, 75 if ``main`` ended so in all processes because of a signal (:mod:`.stop_signals`), or 1 if
        the job failed and all was said. A failure of a process that torchrun or SLURM has started ends it right away.

    Raises:
        UserError: arguments, environment or config cannot be, or the processes cannot meet.
    """
    job = read_job(args)
    if job.world_size == 1:
        return _code_of(main, args)
    options = read_options(args)
    _check_devices(job, options)
    if job.local_rank is None:
        return _launch(job, options, main, args)
    return _work(job, options, main, args)


def _code_of(main: Main, args: argparse.Namespace) -> int:
    """0, or ``REQUEUE`` where a signal ended ``main``."""
    try:
        main(args)
    except SystemExit as ended:
        if ended.code != REQUEUE:
            raise
        return REQUEUE
    return 0


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
    if job.processes > there and not own_gpu_only(job):
        raise UserError(
            f"{job.processes} processes on this machine ({job.started_by}), but it has {there} GPU(s): start fewer, "
            "look at CUDA_VISIBLE_DEVICES, or use the CPU with train.device=cpu"
        )


def _work(job: Job, options: Options, main: Main, args: argparse.Namespace) -> int:
    """Do this process's part, and give its exit code; does not return if it, or another process, fails."""
    store = join(job, options)  # kept to the end: the group of all may be served from here
    watch = Watch(job, store, options.peer_timeout)
    try:
        comm.synchronize()  # all are watched, and none that is slow to start meets the timeout of an exchange of main
        code = _code_of(main, args)
        comm.synchronize()  # none leaves while another still needs it
        gc.collect()  # trainers in reference cycles hold the group, whose threads must be joined before the exit
        dist.destroy_process_group()
    except BaseException as error:
        watch.fail(error)
    watch.leave()
    return code


def _launch(job: Job, options: Options, main: Main, args: argparse.Namespace) -> int:
    """Start the processes of this machine and wait for them."""
    store = listen(job) if job.machine == 0 else None
    if store is not None:
        job = dataclasses.replace(job, port=store.port)
    context: Any = multiprocessing.get_context(_START_METHOD)
    with _environment(job, options):
        if not options.on_gpu:
            threads = os.environ["OMP_NUM_THREADS"]
            tell(f"{job.processes} processes on the CPU, over Gloo; threads of each: {threads} (OMP_NUM_THREADS)")
        given = (job, options, main, args, os.getpid())
        processes = [context.Process(target=_child, args=(rank, *given)) for rank in range(job.processes)]
        for process in processes:
            process.start()
    try:
        with passed_to(processes) as received:
            while not _have_ended(processes) and not any(process.exitcode for process in processes):
                time.sleep(_POLL)
    except KeyboardInterrupt:
        _end(processes, within=1.0)
        raise
    failed = any(process.exitcode for process in processes)
    _end(processes, within=_END_IN)
    for local_rank, process in enumerate(processes):
        code = process.exitcode or 0
        if code < 0 and code != -signal.SIGTERM:
            name = (
                f"rank {job.rank_of(local_rank)} of {job.world_size} (process {process.pid} on {socket.gethostname()})"
            )
            tell(f"error: {name} was killed by {_describe_signal(-code)}")
    del store  # which is to be there until now
    if all(process.exitcode == REQUEUE for process in processes):
        return REQUEUE
    if failed and received:
        signal.raise_signal(received[-1])  # which ended the processes, and ends this one
    return int(failed)


def _have_ended(processes: list[SpawnProcess]) -> bool:
    """Unlike ``join`` with a timeout this does not wait for the workers of a loader that outlive their process."""
    return all(process.exitcode is not None for process in processes)


def _end(processes: list[SpawnProcess], within: float) -> None:
    """Wait for those that end by themselves, as all do soon after a failure, and then end the others."""
    for end in (SpawnProcess.terminate, SpawnProcess.kill):
        deadline = time.monotonic() + within
        while not _have_ended(processes) and time.monotonic() < deadline:
            time.sleep(_POLL)
        for process in processes:
            if process.exitcode is None:
                end(process)


def _child(local_rank: int, job: Job, options: Options, main: Main, args: argparse.Namespace, launcher: int) -> None:
    """Body of a process that the launcher starts."""
    _end_with(launcher)
    show_user_errors_briefly()
    try:
        code = _work(dataclasses.replace(job, local_rank=local_rank), options, main, args)
    except UserError as error:  # before there was a watch
        tell(f"error: {describe(error)}")
        os._exit(1)
    sys.exit(code)


def _end_with(launcher: int) -> None:
    """Let the system end this process once the launcher is gone; right away if that went while this one started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:
        os._exit(1)


@contextmanager
def _environment(job: Job, options: Options) -> Iterator[None]:
    """What processes inherit that are started within it."""
    ours = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # the watch says what it means that a connection is gone
    if not options.on_gpu:  # as many threads as cores in every process would hinder one another
        ours["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // job.processes))
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _describe_signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return name + (": the system may have been out of memory (dmesg says so)" if name == "SIGKILL" else "")
