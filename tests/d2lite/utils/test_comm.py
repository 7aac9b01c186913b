"""Communication, in one process and in two."""

from __future__ import annotations

import multiprocessing

import numpy as np
import torch
import torch.distributed as dist

from elsa_det.d2 import comm


def test_single_process():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather({"a": 1}) == [{"a": 1}]
    assert comm.gather("x") == ["x"]
    losses = {"b": torch.tensor(1.0)}
    assert comm.reduce_dict(losses) is losses
    np.random.seed(3)
    expected = np.random.randint(2**31)
    np.random.seed(3)
    assert comm.shared_random_seed() == expected


def worker(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    comm.create_local_process_group(1)
    np.random.seed(rank)
    reduced = comm.reduce_dict({"b": torch.tensor(4.0 * rank), "a": torch.tensor(2.0)})
    comm.synchronize()
    ranks = (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size())
    gathered = (comm.all_gather(rank * 10), comm.gather(rank, dst=1), comm.shared_random_seed())
    losses = {name: value.item() for name, value in reduced.items()} if rank == 0 else None
    results.put((rank, ranks, comm.is_main_process(), gathered, losses))
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=worker, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in workers:
        process.start()
    found = sorted(results.get(timeout=60) for _ in workers)
    for process in workers:
        process.join(timeout=60)
    assert found == [
        (0, (0, 2, 0, 1), True, ([0, 10], [], 209652396), {"a": 2.0, "b": 2.0}),
        (1, (1, 2, 0, 1), False, ([0, 10], [0, 1], 209652396), None),
    ]
