"""The order of indices: values recorded from Detectron2."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from d2_access import d2_module

from elsa_det.d2 import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

samplers = d2_module("data.samplers")


def take(sampler, n):
    return list(islice(iter(sampler), n))


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be one of several processes."""

    def pretend(rank, world_size):
        comm = d2_module("utils.comm")
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    return pretend


def test_training_sampler_order():
    assert take(TrainingSampler(5, seed=0), 12) == [4, 0, 1, 3, 2, 3, 4, 0, 1, 2, 2, 4]
    assert take(TrainingSampler(5, shuffle=False, seed=0), 7) == [0, 1, 2, 3, 4, 0, 1]


def test_processes_share_one_order(as_rank):
    as_rank(0, 2)
    assert take(TrainingSampler(5, seed=0), 6) == [4, 1, 2, 4, 1, 2]
    as_rank(1, 2)
    assert take(TrainingSampler(5, seed=0), 6) == [0, 3, 3, 0, 2, 4]


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_training_sampler_needs_a_size(size):
    with pytest.raises((ValueError, TypeError), match="size="):
        TrainingSampler(size)


def test_repeat_factors():
    images = [[0], [0, 1], [0], [], [0, 2]]
    dicts = [{"annotations": [{"category_id": c} for c in classes]} for classes in images]
    # class 0 is in 4/5 of the images, classes 1 and 2 in 1/5 each; sqrt(0.8 / 0.2) = 2
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert factors(dicts, 0.8).tolist() == [1, 2, 1, 1, 2]
    assert factors(dicts, 0.8, sqrt=False).tolist() == [1, 4, 1, 1, 4]


def test_repeat_factor_sampler_order():
    factors = torch.tensor([1.0, 2.5, 1.0])
    assert take(RepeatFactorTrainingSampler(factors, seed=3), 12) == [1, 1, 0, 1, 2, 1, 1, 2, 0, 0, 1, 2]
    in_order = RepeatFactorTrainingSampler(factors, shuffle=False, seed=3)
    assert take(in_order, 12) == [0, 1, 1, 1, 2, 0, 1, 1, 1, 2, 0, 1]


def test_inference_sampler_covers_everything_once(as_rank):
    parts = []
    for rank in range(3):
        as_rank(rank, 3)
        sampler = InferenceSampler(8)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_grouped_batches():
    sampler = samplers.GroupedBatchSampler(TrainingSampler(8, shuffle=False), [0, 1] * 4, 3)
    assert take(sampler, 3) == [[0, 2, 4], [1, 3, 5], [6, 0, 2]]
    with pytest.raises(ValueError, match="Sampler"):
        samplers.GroupedBatchSampler([0, 1], [0, 0], 2)
