from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from d2_access import d2_module
from torch import nn

from elsa_det.d2 import comm

EPS = 1e-5
BATCHES = {
    "even": ("", [[0.0, 2.0], [7.0, 9.0]]),
    "processes": ("", [[0.0, 2.0], [7.0]]),
    "samples": ("N", [[0.0, 2.0], [7.0]]),
    "one empty": ("N", [[0.0, 2.0], []]),
    "all empty": ("N", [[], []]),
}
MOMENTS = {  # mean and mean of squares, by hand
    "even": (4.5, (4 + 49 + 81) / 4),
    "processes": ((1 + 7) / 2, (2 + 49) / 2),
    "samples": (9 / 3, 53 / 3),
    "one empty": (1.0, 2.0),
}


class _TwoThreads:
    """Two processes played by two threads: what they reduce is summed within one autograd graph."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=20)
        self.parts: dict[int, torch.Tensor] = {}

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        self.parts[threading.get_ident()] = part
        self.barrier.wait()
        total = sum(self.parts.values())
        self.barrier.wait()
        return total

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            return [future.result() for future in [pool.submit(work, rank) for rank in (0, 1)]]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> _TwoThreads:
    two = _TwoThreads()
    monkeypatch.setattr(d2_module("layers.batch_norm"), "differentiable_all_reduce", two.all_reduce)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    return two


def _train_step(two: _TwoThreads, case: str) -> list[tuple[torch.Tensor, torch.Tensor, nn.Module]]:
    """Of each process: its input, its output, its layer; after the backward pass."""
    mode, batches = BATCHES[case]
    inputs = [torch.tensor(batch).reshape(-1, 1, 1, 1).requires_grad_() for batch in batches]
    modules = [d2_module("layers").NaiveSyncBatchNorm(1, stats_mode=mode) for _ in batches]
    outputs = two.run(lambda rank: modules[rank](inputs[rank]))
    (torch.cat(outputs) ** 3).sum().backward()
    return list(zip(inputs, outputs, modules))


@pytest.mark.parametrize("case", MOMENTS)
def test_statistics_over_two_processes(two, case):
    mean, square = MOMENTS[case]
    var = square - mean**2
    for x, y, layer in _train_step(two, case):
        assert torch.allclose(y, (x - mean) / (var + EPS) ** 0.5, atol=1e-5)
        assert torch.allclose(layer.running_mean, torch.tensor([0.1 * mean]))
        assert torch.allclose(layer.running_var, torch.tensor([0.9 + 0.1 * var]))


@pytest.mark.parametrize("case", MOMENTS)
def test_gradients_cross_processes(two, case):
    mode, batches = BATCHES[case]
    parts = [torch.tensor(batch, dtype=torch.float64, requires_grad=True) for batch in batches]
    if mode == "":
        moments = [sum((part**power).mean() for part in parts) / 2 for power in (1, 2)]
    else:
        moments = [(torch.cat(parts) ** power).mean() for power in (1, 2)]
    ((torch.cat(parts) - moments[0]) / (moments[1] - moments[0] ** 2 + EPS).sqrt()).pow(3).sum().backward()
    for part, (x, _, _) in zip(parts, _train_step(two, case)):
        assert torch.allclose(x.grad.flatten().double(), part.grad, atol=1e-3, rtol=1e-4)


def test_nothing_is_learned_from_nothing(two):
    for _, y, layer in _train_step(two, "all empty"):
        assert y.shape == (0, 1, 1, 1)
        assert layer.running_mean.tolist() == [0.0]
        assert layer.running_var.tolist() == [1.0]
        assert layer.weight.grad.tolist() == [0.0]


def test_half_precision_stays_half(two):
    layer = d2_module("layers").NaiveSyncBatchNorm(1)
    outputs = two.run(lambda rank: layer(torch.tensor([1.0, 3.0]).half().reshape(2, 1, 1, 1)))
    assert [y.dtype for y in outputs] == [torch.float16] * 2
    assert torch.allclose(outputs[0].flatten().float(), torch.tensor([-1.0, 1.0]), atol=1e-3)


def test_equal_weights_refuse_an_empty_batch(two):
    with pytest.raises((ValueError, AssertionError)):
        d2_module("layers").NaiveSyncBatchNorm(1)(torch.zeros(0, 1, 1, 1))


def test_one_process_is_plain_batch_norm():
    x = torch.linspace(-1, 3, 24).reshape(2, 3, 2, 2)
    for mode in ("", "N"):
        layer, plain = d2_module("layers").NaiveSyncBatchNorm(3, stats_mode=mode), torch.nn.BatchNorm2d(3)
        assert torch.equal(layer(x), plain(x))
        assert torch.equal(layer.running_var, plain.running_var)
        assert torch.equal(layer.eval()(x), plain.eval()(x))


def test_an_unknown_mode_is_refused():
    with pytest.raises((ValueError, AssertionError)):
        d2_module("layers").NaiveSyncBatchNorm(3, stats_mode="HW")
