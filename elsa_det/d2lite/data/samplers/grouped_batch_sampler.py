"""Batches of indices that belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Batches from one group each, in an order as close as possible to that of ``sampler``.

    Args:
        sampler: gives indices in [0, N).
        group_ids: N integers, the group of each index.
        batch_size: length of each batch. Groups that are not full when the sampler ends wait for the next iteration.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"GroupedBatchSampler needs a torch.utils.data.Sampler, got {sampler!r}.")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        if self.group_ids.ndim != 1:
            raise ValueError(f"group_ids must be a flat list of integers, got the shape {self.group_ids.shape}.")
        self.batch_size = batch_size
        self.buffer_per_group: dict[int, list[int]] = defaultdict(list)

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            group = int(self.group_ids[index])
            self.buffer_per_group[group].append(index)
            if len(self.buffer_per_group[group]) == self.batch_size:
                yield self.buffer_per_group.pop(group)

    def __len__(self) -> int:
        raise NotImplementedError("How many batches a GroupedBatchSampler gives depends on the order of the groups.")
