"""Which image comes next, agreed among all processes.

Every process computes the same endless sequence from a shared seed and takes each ``world_size``-th index of it. None
of these samplers looks at the data-loading worker it runs in; ``ToIterableDataset`` does that.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import Sampler

from ...utils import comm

__all__ = ["InferenceSampler", "RepeatFactorTrainingSampler", "TrainingSampler"]

logger = logging.getLogger(__name__)


def _agreed_seed(seed: int | None) -> int:
    """``seed``, or one drawn at random that all processes share."""
    return int(comm.shared_random_seed() if seed is None else seed)


class _EndlessSampler(Sampler):
    """An endless sequence of epochs; a subclass says what one epoch is."""

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = _agreed_seed(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of the next epoch, in order; random numbers are taken from ``generator`` only."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            order = torch.randperm(len(indices), generator=generator) if self._shuffle else slice(None)
            yield from indices[order].tolist()

    def __iter__(self) -> Iterator[int]:
        yield from islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_EndlessSampler):
    """Every index once an epoch, for ever.

    Args:
        size: number of items in the dataset.
        shuffle: a new random order each epoch.
        seed: of the shuffling, the same in all processes. None: drawn at random and shared.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=…) is an int, got {size!r}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=…) must be positive, got {size}: the dataset is empty.")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Like :class:`TrainingSampler`, but an index comes ``repeat_factors[index]`` times an epoch, for rare classes.

    The fractional part of a factor is the probability of one more time, drawn anew each epoch.

    Args:
        repeat_factors: (N,) float, one factor an item.
        shuffle: a new random order each epoch.
        seed: of shuffling and rounding. None: drawn at random and shared.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(shuffle, seed)
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Repeat factors of images from how rare their rarest class is (LVIS, appendix B.2).

        A class in the share f of all images has the factor max(1, sqrt(repeat_thresh / f)), an image the largest
        factor of its classes, or 1 without any.

        Args:
            dataset_dicts: in the standard dataset format, with "annotations".
            repeat_thresh: share of images below which a class is repeated.
            sqrt: take the square root.

        Returns:
            (N,) float32.
        """
        classes_of = [{ann["category_id"] for ann in image["annotations"]} for image in dataset_dicts]
        images_with = Counter(c for classes in classes_of for c in classes)
        factor = {}
        for c, count in sorted(images_with.items()):
            ratio = repeat_thresh / (count / len(dataset_dicts))
            factor[c] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
            logger.info("Class %s: in %.2f of the images, repeated %.2f times.", c, count / len(classes_of), factor[c])
        per_image = [max((factor[c] for c in classes), default=1.0) for classes in classes_of]
        return torch.tensor(per_image, dtype=torch.float32)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        one_more = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        times = (self._int_part + one_more.float()).long()
        return torch.repeat_interleave(torch.arange(len(times)), times)


class InferenceSampler(Sampler):
    """Every index exactly once over all processes: contiguous parts, the first ones longer by one where it does not
    divide.

    Args:
        size: number of items in the dataset.
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"InferenceSampler(size=…) must be positive, got {size}: the dataset is empty.")
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        each, longer = divmod(total_size, world_size)
        begin = rank * each + min(rank, longer)
        return range(begin, begin + each + (rank < longer))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
