"""Where the processes of a job meet: a key-value store, who has come there, and the process group they make."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist

from ..d2 import comm
from ..errors import UserError
from .job import LAUNCHER, SLURM, TORCHRUN, Job
from .watch import own_address, tell

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Options:
    """What a config says about the processes of a job.

    Args:
        device: ``train.device``.
        dist_timeout: seconds until an exchange, or a process that does not come, counts as failed.
        peer_timeout: seconds until a process whose machine does not answer counts as gone.
    """

    device: str
    dist_timeout: float = 1800.0
    peer_timeout: float = 60.0

    @property
    def on_gpu(self) -> bool:
        """Whether the processes work on GPUs, one each."""
        return self.device.startswith("cuda")


def listen(job: Job) -> dist.TCPStore:
    """Open the store of the job here; it is there as long as it is kept, at its ``port``.

    Raises:
        UserError: the port is taken.
    """
    try:
        # that all are here is waited for by join, which says who is missing
        return dist.TCPStore(job.host, job.port, is_master=True, wait_for_workers=False)
    except dist.DistError as error:
        remedy = "another port in --dist-url, on all machines" if job.started_by == LAUNCHER else "MASTER_PORT"
        raise UserError(
            f"machine 0 cannot listen at {job.address}: {_first_line(error)}. An earlier run may still be there: end "
            f"it, or choose {remedy}"
        ) from error


def join(job: Job, options: Options) -> dist.Store:
    """Meet the other processes and make the process groups, those of Detectron2's ``comm`` included.

    Returns:
        The store in which they met.

    Raises:
        UserError: one does not come, a rank comes twice, or machines were started for jobs of different sizes.
    """
    store = _store(job, options)
    _check_in(job, store, options.dist_timeout)
    if job.machines > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = _interface_towards(job.host)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    if options.on_gpu:
        torch.cuda.set_device(0 if own_gpu_only(job) else job.local_rank)
    dist.init_process_group(
        "nccl" if options.on_gpu else "gloo",
        store=dist.PrefixStore("group", store),
        rank=job.rank,
        world_size=job.world_size,
        timeout=timedelta(seconds=options.dist_timeout),
    )
    comm.create_local_process_group(job.processes)
    return store


def own_gpu_only(job: Job) -> bool:
    """Whether SLURM shows each task a GPU of its own only (``--gpus-per-task 1``)."""
    return job.started_by == SLURM and torch.cuda.device_count() == 1


def _store(job: Job, options: Options) -> dist.Store:
    timeout = timedelta(seconds=options.dist_timeout)
    try:
        if job.started_by == TORCHRUN:  # it knows which of its agents or workers listens
            store = next(iter(dist.rendezvous("env://", job.rank, job.world_size, timeout=timeout)))[0]
            # in which those that came before a restart may still stand
            return dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        if job.started_by == SLURM and job.rank == 0:
            return listen(job)
        return dist.TCPStore(job.host, job.port, is_master=False, wait_for_workers=False, timeout=timeout)
    except dist.DistError as error:
        raise UserError(
            f"rank {job.rank} does not reach machine 0 at {job.address}: {_first_line(error)}. The command must run "
            f"there too, and the port be open (firewall); {options.dist_timeout:.0f} s are waited (train.dist_timeout)"
        ) from error


def _check_in(job: Job, store: dist.Store, timeout: float) -> None:
    """Wait until every process of the job is here."""
    size = f"{job.machines} x {job.processes}"
    first = store.compare_set("size", "", size).decode()
    if first != size:
        raise UserError(
            f"this machine was started for {size} processes (machines x processes), another one for {first}: "
            "--num-machines and --num-gpus must be the same on all machines"
        )
    if store.add(f"rank {job.rank}", 1) > 1:
        raise UserError(
            f"rank {job.rank} has come twice: every machine needs a --machine-rank of its own, 0 to {job.machines - 1}"
        )
    here = [f"here {rank}" for rank in range(job.world_size)]
    store.set(here[job.rank], "1")
    if job.rank == 0 and job.machines > 1:
        tell(f"Waiting for {job.machines} machines at {job.address}")
    try:
        store.wait(here, timedelta(seconds=timeout))
    except dist.DistError as error:
        missing = [rank for rank, key in enumerate(here) if not store.check([key])]
        machines = sorted({rank // job.processes for rank in missing})
        raise UserError(
            f"rank {_listed(missing)} (machine {_listed(machines)}) did not come within {timeout:.0f} s "
            f"(train.dist_timeout): the command must be started on all {job.machines} machines"
        ) from error


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _interface_towards(host: str) -> str | None:
    """Name of the network interface that reaches an IPv4 host on another machine; None where it cannot be told.

    Gloo takes that of the machine's host name otherwise, which is often the loopback and reaches no other machine.
    """
    try:
        own = socket.inet_aton(socket.gethostbyname(own_address(host)))
    except OSError:  # IPv6
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no IPv4 address
                continue
            if answer[20:24] == own:
                return name
    return None
