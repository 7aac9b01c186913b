"""From dataset names to batches."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from termcolor import colored
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from ..utils.comm import get_world_size
from ..utils.env import seed_all_rng
from ..utils.logger import log_first_n
from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, TrainingSampler

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """Leave out the images without any object, or with crowds only; the log says how many."""
    kept = [image for image in dataset_dicts if any(not ann.get("iscrowd", 0) for ann in image["annotations"])]
    logger.info("%d images without usable annotations left out, %d remain.", len(dataset_dicts) - len(kept), len(kept))
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log how many objects of each class there are, crowds not counted.

    Raises:
        ValueError: if a "category_id" is outside [0, number of classes).
    """
    counts = np.zeros(len(class_names), dtype=int)
    for image in dataset_dicts:
        for ann in image["annotations"]:
            if ann.get("iscrowd", 0):
                continue
            category = int(ann["category_id"])
            if not 0 <= category < len(counts):
                raise ValueError(
                    f"category_id={category} in image '{image.get('file_name', image.get('image_id'))}' is none of the "
                    f"{len(counts)} classes 0 to {len(counts) - 1}. In dataset dicts ids are contiguous, from 0 on; "
                    "load_coco_json maps them if it is given the name of the dataset."
                )
            counts[category] += 1
    cells: list[Any] = []
    for name, count in zip(class_names, counts.tolist()):
        cells += [name if len(name) <= 13 else name[:11] + "..", count]
    if len(class_names) > 1:
        cells += ["total", int(counts.sum())]
    columns = min(6, 2 * len(class_names))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    headers = ["category", "#instances"] * (columns // 2)
    table = tabulate(rows, headers, tablefmt="pipe", stralign="center", numalign="left")
    log_first_n(logging.INFO, f"Objects of each of the {len(counts)} classes:\n{colored(table, 'cyan')}", key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load datasets by name, together one list.

    Args:
        names: of registered datasets, one or several.
        filter_empty: leave out images without objects.
        min_keypoints: must be 0, there are no keypoints here.
        proposal_files: must be None, there are no precomputed proposals here.
        check_consistency: check that the datasets have the same classes, and log how many objects of each there are.

    Returns:
        list of dicts in the standard dataset format; or, if the datasets are torch datasets, one of these.

    Raises:
        KeyError: if a name is not registered.
        ValueError: if nothing is there to load or left to use, or the classes differ.
    """
    if min_keypoints > 0 or proposal_files is not None:
        raise ValueError(
            "get_detection_dataset_dicts: the embedded d2lite has neither keypoints (min_keypoints) nor precomputed "
            "proposals (proposal_files). Install Detectron2 for them."
        )
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("get_detection_dataset_dicts needs the name of at least one dataset, got none.")
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], Dataset):
        return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)

    for name, dicts in zip(names, datasets):
        if not dicts:
            raise ValueError(f"Dataset '{name}' is empty: its annotations name no image.")
    images = [image for dicts in datasets for image in dicts]
    if "annotations" not in images[0]:
        return images
    if filter_empty:
        images = filter_images_with_only_crowd_annotations(images)
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    if check_consistency and class_names is not None:
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(images, class_names)
    if not images:
        raise ValueError(
            f"No image of {', '.join(names)} has an object that can be trained on (all have none, or "
            "only crowds). Pass filter_empty=False to keep them."
        )
    return images


def build_batch_data_loader(
    dataset: Any,
    sampler: Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader of batches that are lists, not collated tensors: images have different sizes.

    Args:
        dataset: with indices, or a stream.
        sampler: of the indices; None for a stream, and only then.
        total_batch_size: of all processes together.
        aspect_ratio_grouping: see :func:`build_detection_train_loader`.
        num_workers: data-loading processes for each training process.
        collate_fn: makes a batch of a list, nothing by default.
        drop_last: leave out a last batch that is not full.
        single_gpu_batch_size: of each process, instead of ``total_batch_size``.
        prefetch_factor, persistent_workers, pin_memory: see ``torch.utils.data.DataLoader``.
        seed: of the loader's generator, from which the workers are seeded.
        kwargs: more for ``DataLoader``.

    Raises:
        ValueError: if the batch does not divide among the processes, or arguments contradict each other.
    """
    if single_gpu_batch_size and total_batch_size:
        raise ValueError("Give either total_batch_size or single_gpu_batch_size, not both.")
    batch_size, processes = single_gpu_batch_size, get_world_size()
    if not batch_size:
        if not total_batch_size or total_batch_size < 0 or total_batch_size % processes:
            raise ValueError(
                f"total_batch_size={total_batch_size} must be a positive multiple of the number of processes (GPUs), "
                f"which is {processes}."
            )
        batch_size = total_batch_size // processes
    logger.info("%d images a batch in each of %d processes.", batch_size, processes)

    if aspect_ratio_grouping and not drop_last:
        raise ValueError("aspect_ratio_grouping leaves incomplete batches out, so drop_last=False is not possible.")
    sampler = _checked_sampler(dataset, sampler, _no_default_sampler)
    if sampler is not None:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)

    options: dict[str, Any] = {
        **kwargs,
        "num_workers": num_workers,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": worker_init_reset_seed,
    }
    if num_workers > 0:
        options["prefetch_factor"] = prefetch_factor
    if seed is not None:
        options["generator"] = torch.Generator().manual_seed(seed)
    if not aspect_ratio_grouping:
        collate = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate, **options)
    # Single images come out of the loader, and are batched behind it.
    batches = AspectRatioGroupedDataset(DataLoader(dataset, collate_fn=operator.itemgetter(0), **options), batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _mapped(dataset: Any, mapper: Callable | None) -> Any:
    """A list or dataset as a dataset, with the mapper applied."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _checked_sampler(dataset: Any, sampler: Sampler | Iterable | None, default: Callable[[int], Sampler]) -> Any:
    """The sampler to use: the given one or the default, none for a stream."""
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError(f"A stream comes in its own order: sampler must be None, got {sampler!r}.")
        return None
    return default(len(dataset)) if sampler is None else sampler


def _no_default_sampler(size: int) -> Sampler:
    raise ValueError(f"A dataset with indices needs a sampler (for example TrainingSampler({size})).")


def build_detection_train_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
    **kwargs: Any,
) -> Any:
    """An endless loader of training batches.

    Args:
        dataset: dicts in the standard dataset format, or a torch dataset (with indices or a stream).
        mapper: makes of a dict what the model takes, for example a :class:`DatasetMapper`.
        sampler: of the indices; a :class:`TrainingSampler` by default, none for a stream.
        total_batch_size: of all processes together.
        aspect_ratio_grouping: batches of images that are all wider than tall, or all not; the mapped dicts need
            "width" and "height".
        num_workers: data-loading processes for each training process.
        collate_fn: makes a batch of a list, nothing by default.
        kwargs: see :func:`build_batch_data_loader`.

    Raises:
        TypeError: if ``sampler`` is no torch sampler.
        ValueError: see :func:`build_batch_data_loader`.
    """
    dataset = _mapped(dataset, mapper)
    sampler = _checked_sampler(dataset, sampler, TrainingSampler)
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"build_detection_train_loader(sampler=…) is a torch Sampler, got {type(sampler).__name__}.")
    kwargs |= {"aspect_ratio_grouping": aspect_ratio_grouping, "num_workers": num_workers, "collate_fn": collate_fn}
    return build_batch_data_loader(dataset, sampler, total_batch_size, **kwargs)


def build_detection_test_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
) -> DataLoader:
    """A loader that gives every image once, spread over the processes.

    Args:
        dataset, mapper, num_workers, collate_fn: see :func:`build_detection_train_loader`.
        sampler: of the indices; an :class:`InferenceSampler` by default, none for a stream.
        batch_size: of each process; speed is measured with 1 by custom.
    """
    mapped = _mapped(dataset, mapper)
    return DataLoader(
        mapped,
        batch_size=batch_size,
        sampler=_checked_sampler(mapped, sampler, InferenceSampler),
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed all generators of a data-loading worker, each worker differently."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
