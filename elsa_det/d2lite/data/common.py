"""Datasets that wrap datasets: mapping, compact storage, streaming, grouping by shape."""

from __future__ import annotations

import copy
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


class _MapIterableDataset(IterableDataset):
    """A stream with a function applied; what the function turns into ``None`` is left out."""

    def __init__(self, dataset: Iterable, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator:
        return (mapped for item in self._dataset if (mapped := self._map_func(item)) is not None)


class MapDataset(Dataset):
    """A dataset with a function applied to its items.

    The function may return ``None`` for an item it cannot use. A stream goes on to the next item then; an indexed
    dataset tries another index at random (from a generator of its own) among those that have not failed.
    Built on a stream (``IterableDataset``), the object is a stream itself.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func
        self._rng = random.Random(42)
        # A set that is only added to and discarded from: its order decides which index a given random number picks.
        self._fallback_candidates = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current, failures = int(idx), 0
        while (mapped := self._map_func(self._dataset[current])) is None:
            failures += 1
            self._fallback_candidates.discard(current)
            if not self._fallback_candidates:
                raise RuntimeError(
                    f"The mapper returned None for every one of the {len(self)} items of the dataset, so there is "
                    "nothing to train on. Look at what it rejects."
                )
            current = self._rng.sample(list(self._fallback_candidates), k=1)[0]
            if failures >= 3:
                logger.warning("The mapper returned None %d times in a row in place of item %d.", failures, idx)
        self._fallback_candidates.add(current)
        return mapped


class _TorchSerializedList:
    """A list pickled into one byte tensor, which worker processes share instead of copying it page by page."""

    def __init__(self, items: list) -> None:
        pickled = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in items]
        self._ends = torch.from_numpy(np.cumsum([len(p) for p in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(pickled) if pickled else np.zeros(0, np.uint8))
        logger.info("%d items serialized into %.2f MiB.", len(pickled), len(self._bytes) / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} is outside a list of {len(self)} items")
        idx %= len(self)
        start = 0 if idx == 0 else int(self._ends[idx - 1])
        return pickle.loads(self._bytes[start : int(self._ends[idx])].numpy().data)


class DatasetFromList(Dataset):
    """A list as a dataset.

    Args:
        lst: the items.
        copy: give deep copies, so that the user may change them. Serialized items are always fresh.
        serialize: keep the items in shared, serialized memory; or a callable that turns the list into such a container.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True) -> None:
        if not (isinstance(serialize, bool) or callable(serialize)):
            raise TypeError(f"DatasetFromList(serialize=…) is a bool or a callable, got {serialize!r}.")
        self._copy = copy
        self._serialize = serialize is not False
        container = serialize if callable(serialize) else _TorchSerializedList
        self._lst = container(lst) if self._serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        item = self._lst[idx]
        return copy.deepcopy(item) if self._copy and not self._serialize else item


def _share_of_this_worker(indices: Iterable, chunk_size: int) -> Iterator:
    """What this data-loading worker takes of ``indices``: chunks of ``chunk_size``, dealt in turn to the workers."""
    worker = get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from indices
        return
    for position, index in enumerate(indices):
        if position // chunk_size % worker.num_workers == worker.id:
            yield index


class ToIterableDataset(IterableDataset):
    """The items of an indexed dataset as a stream, in the order of a sampler.

    Each data-loading worker runs the whole sampler and keeps its share; samplers are cheap.

    Args:
        dataset: has ``__getitem__``.
        sampler: gives indices into it.
        shard_sampler: deal the indices out among the workers; False if the sampler does so itself.
        shard_chunk_size: how many successive indices one worker gets at a time: the batch size, so that batches are
            the same whatever the number of workers.
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError(f"ToIterableDataset needs a dataset with indices, got the stream {dataset!r}.")
        if not isinstance(sampler, Sampler):
            raise TypeError(f"ToIterableDataset needs a torch Sampler, got {type(sampler).__name__}.")
        self.dataset, self.sampler = dataset, sampler
        self.shard_sampler, self.shard_chunk_size = shard_sampler, shard_chunk_size

    def __iter__(self) -> Iterator:
        indices = _share_of_this_worker(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of images that are all wider than tall, or all not, so that little padding is needed.

    Args:
        dataset: gives dicts with "width" and "height".
        batch_size: length of the lists that come out.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._waiting: dict[bool, list[dict]] = {True: [], False: []}  # wider than tall?

    def __iter__(self) -> Iterator[list[dict]]:
        for item in self.dataset:
            wide = item["width"] > item["height"]
            self._waiting[wide].append(item)
            if len(self._waiting[wide]) == self.batch_size:
                # Emptied before the yield: nothing after it is sure to run.
                batch, self._waiting[wide] = self._waiting[wide], []
                yield batch
