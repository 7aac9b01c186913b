"""Training data in an order that can be gone on with: which images make a batch, and how they are augmented."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..d2 import DatasetFromList, TrainingSampler, build_detection_train_loader, comm, instantiate
from ..data.copy_paste import CopyPasteMapper, CopyPasteOptions, ImagePairs, build_copy_paste_train_loader
from ..data.workers import NumberedDataset
from ..errors import UserError
from .random_state import random_numbers_kept, random_numbers_of

logger = logging.getLogger(__name__)

_DETECTION, _COPY_PASTE = "build_detection_train_loader", "build_copy_paste_train_loader"
_ATTEMPTS = 100  #: images that are tried in place of one that the mapper does not take


class SeededSamples(Dataset):
    """The samples of a dataset, each mapped with random numbers of its own.

    An index is a pair: the place in the order of all processes, and the index into the dataset. The random numbers of
    Python, NumPy and torch come from the seed and these two, whichever process loads the sample and whatever it has
    loaded before. Where the mapper gives None, another image is drawn, from the same random numbers.

    Args:
        dataset: with indices.
        mapper: makes of an item what the model takes; None takes it as it is.
        seed: at least 0.
    """

    def __init__(self, dataset: Any, mapper: Callable[[Any], Any] | None, seed: int) -> None:
        self.dataset, self.mapper, self.seed = dataset, mapper, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """The mapped sample.

        Raises:
            UserError: the mapper gave None for image after image.
        """
        number, index = place
        with random_numbers_of(self.seed, number, index, kept=get_worker_info() is None):
            for _ in range(_ATTEMPTS):
                item = self.dataset[index]
                item = item if self.mapper is None else self.mapper(item)
                if item is not None:
                    return item
                index = int(np.random.randint(len(self.dataset)))
        raise UserError(
            f"the mapper gave None for {_ATTEMPTS} images, one after the other: look at what dataloader.train.mapper "
            "rejects"
        )


class BatchOrder(Sampler):
    """Places and indices in the order of their batches, so that successive ``batch_size`` of them are a batch.

    Grouping is done here, where it needs no images, rather than behind the loader: the order does not depend on the
    number of data-loading workers, and going on in the midst of it is leaving batches out.

    Args:
        sampler: gives the indices of this process, the same ones each time it is iterated over.
        batch_size: images of this process in a batch.
        wide: (N,) bool, whether an image is wider than tall; batches are of either kind. None does not group.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, wide: np.ndarray | None = None) -> None:
        self.sampler, self.batch_size, self.wide = sampler, batch_size, wide
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        #: batches that are left out at the beginning
        self.done = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if get_worker_info() is not None:
            _outlive_signals_to_the_group()
        indices = ((self.rank + own * self.processes, int(index)) for own, index in enumerate(self.sampler))
        if self.wide is None:
            return islice(indices, self.done * self.batch_size, None)
        return chain.from_iterable(islice(self._groups(indices), self.done, None))

    def _groups(self, indices: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        assert self.wide is not None
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for place in indices:
            group = waiting[bool(self.wide[place[1]])]
            group.append(place)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()


class ResumableLoader:
    """Batches of a loader in a :class:`BatchOrder`, counted as they are taken.

    Args:
        loader: of the batches.
        order: that the loader follows.
        samples: that it loads.
    """

    def __init__(self, loader: Iterable[Any], order: BatchOrder, samples: SeededSamples) -> None:
        self._loader, self._order, self._samples = loader, order, samples
        #: batches that were taken
        self.done = 0

    def __iter__(self) -> Iterator[Any]:
        self._order.done = self.done
        with random_numbers_kept():
            batches = iter(self._loader)
        for batch in batches:
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the order is, and what it depends on."""
        return {
            "batches": self.done,
            "batch_size": self._order.batch_size,
            "processes": self._order.processes,
            "images": len(self._samples),
            "grouped": self._order.wide is not None,
            "seed": self._samples.seed,
            "sampler_seed": getattr(self._order.sampler, "_seed", None),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from there, before the first batch is taken.

        Returns:
            Why the order is not that of an uninterrupted run; empty if it is.
        """
        own, differences = self.state_dict(), []
        for key, what in (
            ("images", "images in the dataset"),
            ("batch_size", "images in a batch of a process"),
            ("processes", "processes"),
            ("grouped", "grouping by aspect ratio"),
        ):
            if state[key] != own[key]:
                differences.append(f"{what}: {state[key]} before, {own[key]} now")
        self._samples.seed = state["seed"]
        if state["sampler_seed"] is not None and own["sampler_seed"] is not None:
            self._order.sampler._seed = state["sampler_seed"]  # type: ignore[attr-defined]
        else:
            name = type(self._order.sampler).__name__
            differences.append(f"the sampler {name} has no seed that is known, its order may be another one")
        seen = state["batches"] * state["batch_size"] * state["processes"]
        self.done = seen // (own["batch_size"] * own["processes"])
        return differences


def make_train_loader(loader: DictConfig, *, seed: int | None) -> tuple[Any, str | None]:
    """The training loader of a config, as a :class:`ResumableLoader` where that is possible.

    Args:
        loader: the config of Detectron2's ``build_detection_train_loader``, or of elsa_det's with copy-paste.
        seed: of the augmentation; negative or None draws one that all processes share.

    Returns:
        The loader, and why it cannot be gone on with, None if it can. The loader is that of the config then.
    """
    target = loader.get("_target_")
    name = target.rpartition(".")[2] if isinstance(target, str) else getattr(target, "__name__", "")
    module = target if isinstance(target, str) else getattr(target, "__module__", "")
    if name not in (_DETECTION, _COPY_PASTE) or not module.startswith(("detectron2.", "elsa_det.")):
        return instantiate(loader), f"dataloader.train calls {target}, whose order is its own"
    given = {str(key): loader[key] for key in loader if key not in ("_target_", "dataset", "mapper", "sampler")}
    given = {key: instantiate(value) for key, value in given.items()}
    dataset = instantiate(loader.dataset)
    mapper, sampler = instantiate(loader.get("mapper")), instantiate(loader.get("sampler"))
    wide, reason = None, None
    if isinstance(dataset, IterableDataset):
        reason = "the dataset is a stream, which comes in an order of its own"
    elif given.get("aspect_ratio_grouping", True):
        wide, reason = _wider_than_tall(dataset)
    if reason is not None:
        build = build_copy_paste_train_loader if name == _COPY_PASTE else build_detection_train_loader
        return build(dataset, mapper=mapper, sampler=sampler, **given), reason
    seed = comm.shared_random_seed() if seed is None or seed < 0 else int(seed)
    given["aspect_ratio_grouping"] = False  # the order does it
    return _build(dataset, mapper, sampler, seed, wide, pasting=name == _COPY_PASTE, **given), None


def _wider_than_tall(dataset: Any) -> tuple[np.ndarray | None, str | None]:
    """(N,) bool of the images of a dataset, and why they are not known, of which one is None."""
    remedy = "; set dataloader.train.aspect_ratio_grouping=False"
    if not isinstance(dataset, (list, tuple, NumberedDataset)):
        kind = type(dataset).__name__
        return None, f"images of a {kind} cannot be grouped by aspect ratio before they are read{remedy}"
    items = (dataset[i] for i in range(len(dataset)))
    known = [d["width"] > d["height"] if {"width", "height"} <= set(d) else None for d in items]
    unknown = known.count(None)
    if unknown:
        return None, (
            f"{unknown} of {len(dataset)} images have no width and height in the dataset, so that they cannot be "
            f"grouped by aspect ratio before they are read{remedy}"
        )
    return np.array(known, dtype=bool), None


def _build(
    dataset: Any,
    mapper: Any,
    sampler: Any,
    seed: int,
    wide: np.ndarray | None,
    *,
    pasting: bool,
    total_batch_size: int | None = None,
    single_gpu_batch_size: int | None = None,
    **kwargs: Any,
) -> ResumableLoader:
    if pasting:
        mapper = CopyPasteMapper(mapper, CopyPasteOptions.read(kwargs.pop("copy_paste", None)))
        dataset = ImagePairs(dataset)
    elif isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    samples = SeededSamples(dataset, mapper, seed)
    batch_size = single_gpu_batch_size or (total_batch_size or 0) // comm.get_world_size()
    order = BatchOrder(TrainingSampler(len(samples)) if sampler is None else sampler, batch_size, wide)
    sizes = {"single_gpu_batch_size": single_gpu_batch_size} if single_gpu_batch_size else {}
    # The workers' own seeds do not matter; with one, making them takes no random number of the training.
    loader = build_detection_train_loader(
        samples,
        mapper=None,
        sampler=order,
        total_batch_size=total_batch_size,
        **{"seed": seed, **sizes, **kwargs},
    )
    return ResumableLoader(loader, order, samples)


@functools.cache
def _outlive_signals_to_the_group() -> None:
    """In a data-loading worker, let the signals pass that batch systems send to all processes of a job.

    The training process needs its workers until the iteration ends, and ends them itself: by SIGTERM too, so that it
    counts who sent it, which a handler cannot see.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent, numbers = os.getppid(), (signal.SIGTERM, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def obey_the_parent() -> None:
        while True:
            sent = signal.sigwaitinfo(numbers)
            if sent.si_signo == signal.SIGTERM and sent.si_pid == parent:
                os._exit(0)

    threading.Thread(target=obey_the_parent, daemon=True).start()
