"""Ranks and the exchange of Python objects between the processes of a distributed run.

Everything works in a single process without a process group too: rank 0 of 1.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Rank of this process among all."""
    return dist.get_rank() if _distributed() else 0


def is_main_process() -> bool:
    """Whether this is rank 0."""
    return get_rank() == 0


@functools.lru_cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make the group of the processes on this machine. Every process calls it together; ``launch`` does it for you.

    Raises:
        ValueError: the number of processes is not a multiple of ``num_workers_per_machine``.
        RuntimeError: there is such a group already.
    """
    global _LOCAL_PROCESS_GROUP
    if _LOCAL_PROCESS_GROUP is not None:
        raise RuntimeError("The local process group exists already; it is made once a process.")
    world_size = get_world_size()
    if world_size % num_workers_per_machine:
        raise ValueError(f"{world_size} processes are not a multiple of {num_workers_per_machine} processes a machine.")
    for first in range(0, world_size, num_workers_per_machine):
        ranks = range(first, first + num_workers_per_machine)
        group: Any = dist.new_group(list(ranks))  # every process takes part in making every group
        if get_rank() in ranks:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine, for instance for a SyncBN within it.

    Raises:
        RuntimeError: :func:`create_local_process_group` was not called.
    """
    if _LOCAL_PROCESS_GROUP is None:
        raise RuntimeError(
            "There is no local process group yet. Start the processes with launch(), or call "
            "comm.create_local_process_group(num_workers_per_machine) after torch.distributed.init_process_group()."
        )
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Rank of this process among those of its machine."""
    return dist.get_rank(group=get_local_process_group()) if _distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _distributed() else 1


def synchronize() -> None:
    """Wait until every process has come here."""
    if get_world_size() > 1:
        on_gpu = dist.get_backend() == dist.Backend.NCCL  # it guesses the device, and warns, if not told
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


@functools.lru_cache
def _cpu_group() -> Any:
    """All processes over gloo, so that gathered objects do not pass through GPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def _exchange_group(group: dist.ProcessGroup | None) -> tuple[dist.ProcessGroup | None, int]:
    if get_world_size() == 1:
        return None, 1
    group = _cpu_group() if group is None else group
    return group, dist.get_world_size(group)


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """What every process of the group gave, by rank. ``data`` is anything that pickles; default group: all, on CPU."""
    group, size = _exchange_group(group)
    if size == 1:
        return [data]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Like :func:`all_gather`, but only rank ``dst`` gets the list and the others get an empty one."""
    group, size = _exchange_group(group)
    if size == 1:
        return [data]
    gathered: list[Any] = [None] * size if dist.get_rank(group=group) == dst else []
    dist.gather_object(data, gathered or None, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """A random number that all processes agree on (rank 0's draw from numpy's generator). All must call it together."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum scalar tensors over all processes (mean if ``average``); the result is right on rank 0 only."""
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)  # the same order everywhere
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and is_main_process():
            values /= world_size
    return dict(zip(names, values))
