"""Start one process per device, joined in a process group."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in every worker of a job; call this once on each of its machines.

    A job of one process runs right here. Otherwise ``num_gpus_per_machine`` processes are spawned, so ``main_func``
    and ``args`` must be picklable. They talk over NCCL, one GPU each, or over Gloo where there is no CUDA.

    Args:
        main_func: What to run.
        num_gpus_per_machine: Processes on each machine; with CUDA, at most the GPUs it has.
        num_machines: Machines in the job.
        machine_rank: Number of this machine, from 0.
        dist_url: Where the processes meet, such as ``tcp://127.0.0.1:8686``. ``"auto"`` finds a free local port,
            which works for a single machine only. ``None`` reads the address from the environment (``env://``).
        args: Arguments of ``main_func``.
        timeout: How long a worker waits for the others before it gives up.

    Raises:
        ValueError: ``"auto"`` with several machines, or more processes than GPUs.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return

    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(
            f"launch: {num_gpus_per_machine} processes per machine were asked for, but this machine has "
            f"{torch.cuda.device_count()} GPU(s). Lower --num-gpus, or check CUDA_VISIBLE_DEVICES."
        )
    if dist_url == "auto":
        if num_machines != 1:
            raise ValueError(
                f"launch: dist_url='auto' finds a port on this machine only, but the job has {num_machines} machines. "
                "Give every one of them the same address, such as tcp://<host of machine 0>:<port>."
            )
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        logger.warning("file:// is an unreliable meeting point for several machines: prefer tcp://.")

    worker_args = (main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout)
    mp.start_processes(_worker, args=worker_args, nprocs=num_gpus_per_machine, daemon=False)


def _free_port() -> int:
    """A port that is free now; another process may still take it before we do."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    processes_per_machine: int,
    machine_rank: int,
    dist_url: str | None,
    args: tuple,
    timeout: timedelta,
) -> None:
    """Body of one spawned process."""
    on_gpu = torch.cuda.is_available()
    rank = machine_rank * processes_per_machine + local_rank
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=dist_url, world_size=world_size, rank=rank, timeout=timeout
        )
    except Exception:
        logger.error("Rank %d of %d could not join the process group at %s", rank, world_size, dist_url)
        raise
    comm.create_local_process_group(processes_per_machine)
    if on_gpu:
        torch.cuda.set_device(local_rank)
    # Without this, a rank that is slow to start may meet the others' first collective after their timeout.
    comm.synchronize()

    main_func(*args)
    # Only after success: a failed rank must not wait here for peers that will never come. Rank 0 keeps the store of the
    # group, and the others abort if it goes while they still work.
    comm.synchronize()
    gc.collect()  # trainers and DDP models in reference cycles hold the group, whose threads must be joined before exit
    dist.destroy_process_group()
