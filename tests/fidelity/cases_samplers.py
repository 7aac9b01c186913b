"""The order in which samplers give images."""

from __future__ import annotations

import contextlib
import itertools
from unittest import mock

import numpy as np
from fidelity.harness import case, error_of

from elsa_det import d2


@contextlib.contextmanager
def as_rank(rank: int, size: int):
    with (
        mock.patch.object(d2.comm, "get_rank", return_value=rank),
        mock.patch.object(d2.comm, "get_world_size", return_value=size),
    ):
        yield


def first(sampler, number: int = 40) -> list[int]:
    return [int(index) for index in itertools.islice(iter(sampler), number)]


@case("TrainingSampler", what="the first 40 indices, shuffled and not, of one, two and three ranks; errors")
def training():
    out = {}
    for rank, size in ((0, 1), (0, 2), (1, 2), (2, 3)):
        with as_rank(rank, size):
            out[f"{rank}_of_{size}"] = first(d2.TrainingSampler(11, seed=5))
            out[f"{rank}_of_{size}_in_order"] = first(d2.TrainingSampler(11, shuffle=False, seed=5))
    np.random.seed(3)
    out["seed_drawn"] = first(d2.TrainingSampler(7))
    out["errors"] = [
        error_of(lambda: d2.TrainingSampler(0)),
        error_of(lambda: d2.TrainingSampler(-3)),
        error_of(lambda: d2.TrainingSampler(3.5)),
    ]
    return out


@case(
    "RepeatFactorTrainingSampler",
    what="repeat factors of images by the frequency of their classes, and the order, of one and two ranks",
    rtol=1e-6,
)
def repeat_factor():
    dicts = [
        {"annotations": [{"category_id": c} for c in classes]}
        for classes in ([0], [0, 1], [0], [2, 0], [0, 0], [], [1], [0, 2, 3])
    ]
    factors = d2.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    out = {"factors": factors(dicts, 0.5), "low": factors(dicts, 0.2), "plain": factors(dicts, 0.5, sqrt=False)}
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        with as_rank(rank, size):
            out[f"{rank}_of_{size}"] = first(d2.RepeatFactorTrainingSampler(out["factors"], seed=3))
            out[f"{rank}_of_{size}_in_order"] = first(
                d2.RepeatFactorTrainingSampler(out["factors"], shuffle=False, seed=3)
            )
    return out


@case("InferenceSampler", what="the indices of each of one to four ranks; lengths; errors")
def inference():
    out = {}
    for size in (1, 2, 3, 4):
        for rank in range(size):
            with as_rank(rank, size):
                sampler = d2.InferenceSampler(10)
                out[f"{rank}_of_{size}"] = [list(sampler), len(sampler)]
    return out | {"empty": error_of(lambda: d2.InferenceSampler(0))}
