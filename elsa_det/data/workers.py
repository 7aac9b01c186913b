"""Which image each data-loading worker has, so that the death of a worker can be told with its image."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from ..errors import UserError

#: under which dataset dicts carry their place in the dataset to the mapper, which does not see it
INDEX = "_index_in_dataset"

_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?P<how>[^\n]*)")
_REMEDIES = {
    "signal: killed": "The system kills processes when memory runs out (dmesg says so): lower num_workers of the "
    "loader, load smaller images, or free memory",
    "signal: segmentation fault": "A library crashed at the image: look at the file, and replace it or take it out of "
    "the dataset",
    "signal: bus error": "Shared memory is full (df /dev/shm): enlarge it (docker run --shm-size=8g), or lower "
    "num_workers of the loader",
}
_OTHERWISE = "num_workers=0 of the loader loads images in the training process, whose own error says more"


class DataWorkerError(UserError, RuntimeError):
    """A data-loading worker died."""


class NumberedDataset(Dataset):
    """A dataset of dicts, each with its index as :data:`INDEX`.

    Args:
        dataset: with indices; its dicts are not changed.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], INDEX: int(index)}


def describe_sample(sample: Mapping[str, Any], index: int | None) -> str:
    """Such as "image a.jpg (image_id 7, index 3 in the dataset)"."""
    found = [f"image_id {sample['image_id']}"] if "image_id" in sample else []
    found += [] if index is None else [f"index {index} in the dataset"]
    return f"image {sample.get('file_name', '(without file_name)')}" + (f" ({', '.join(found)})" if found else "")


class SampleRecord:
    """Notes the image that a worker has, in a file of the worker, where it outlives it.

    Args:
        loader: name of the loader; two that load at a time have different ones.
    """

    def __init__(self, loader: str) -> None:
        self.loader, self._folder = loader, Path(_folder(os.getpid()).name)

    def note(self, sample: str) -> None:
        """Note what a worker begins with; nothing outside of workers."""
        worker = get_worker_info()
        if worker is None:
            return
        content = json.dumps({"pid": os.getpid(), "sample": sample})
        with contextlib.suppress(OSError):  # then the image is not known, and nothing else depends on it
            (self._folder / f"{self.loader}_{worker.id}.json").write_text(content, encoding="utf-8")


@contextlib.contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Within it, what torch raises in the main thread when a worker has died becomes an error that says more.

    Raises:
        DataWorkerError: naming the image that the worker had.
    """
    try:
        yield
    except RuntimeError as error:
        message = explain_death(error)
        if message is None:
            raise
        raise DataWorkerError(message) from error


def explain_death(error: BaseException) -> str | None:
    """What there is to say of a dead worker; None if ``error`` is about something else."""
    deaths = []
    cause: BaseException | None = error
    while cause is not None:
        if found := _DEATH.search(str(cause)):
            deaths.append(found)
        cause = cause.__cause__ or cause.__context__
    if not deaths:
        return None
    death = max(deaths, key=lambda found: len(found["how"]))  # torch chains two, of which one has the reason
    how = death["how"].split(". ")[0].rstrip(" .")
    pids = sorted({int(pid) for found in deaths for pid in found["pids"].split(",")})
    had = _noted()
    workers = "; ".join(f"process {pid} had {had.get(pid, 'an image that is not known')}" for pid in pids)
    remedy = next((text for signal, text in _REMEDIES.items() if signal in how.lower()), _OTHERWISE)
    return f"a data-loading worker {how}; {workers}. {remedy}"


def _noted() -> dict[int, str]:
    """What workers of this process have noted last, by their process ids."""
    found = {}
    for file in Path(_folder(os.getpid()).name).iterdir():
        with contextlib.suppress(ValueError):  # killed while it wrote
            noted = json.loads(file.read_text(encoding="utf-8"))
            found[noted["pid"]] = noted["sample"]
    return found


@functools.cache
def _folder(process: int) -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, which goes with it; forked ones, that have another id, get their own."""
    return tempfile.TemporaryDirectory(prefix="elsa_det_workers_")
