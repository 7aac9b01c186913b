"""Errors of data loading name the image: files that cannot be read, mappers that fail, workers that die."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from ..d2 import DatasetFromList, detection_utils, instantiate
from ..errors import UserError
from .workers import INDEX, NumberedDataset, SampleRecord, describe_sample

# UnidentifiedImageError and truncated files are OSErrors; Pillow raises SyntaxError for some broken ones.
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError, detection_utils.SizeMismatchError)


class MapperError(RuntimeError):
    """A mapper failed at an image, which the message names; the cause is the error itself."""


class NamingMapper:
    """A mapper that says which image it was at, where it fails or the file cannot be used.

    Args:
        mapper: makes of a dataset dict what the model takes.
        record: where the image is noted before it is mapped, for the case that the process dies.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any], record: SampleRecord) -> None:
        self.mapper, self.record = mapper, record

    def __call__(self, dataset_dict: Mapping[str, Any]) -> Any:
        """Map an image.

        Raises:
            UserError: the image cannot be read.
            FileNotFoundError: it is not there.
            MapperError: the mapper fails for another reason.
        """
        sample = {key: value for key, value in dataset_dict.items() if key != INDEX}
        which = describe_sample(sample, dataset_dict.get(INDEX))
        self.record.note(which)
        try:
            return self.mapper(sample)
        except UserError:
            raise
        except _UNREADABLE as error:
            if isinstance(error, FileNotFoundError) and error.filename is None:
                raise  # one of ours, which names the file
            name = dataset_dict.get("file_name", "(without file_name)")
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"image {name} is not there any more: {error.filename} is missing") from error
            raise UserError(
                f"image {name} cannot be used: {error}. Replace the file, or take it out of the dataset; "
                "train.check_data=pixels finds all such images before the training"
            ) from error
        except Exception as error:
            raise MapperError(f"the mapper failed at {which}: {type(error).__name__}: {error}") from error


def with_named_errors(loader: Any, name: str) -> Any:
    """The config of a loader whose errors name the image; the given one is kept.

    Args:
        loader: the config.
        name: "train" or "test"; loaders that load at the same time have different ones.
    """
    if "mapper" not in loader:
        return loader
    naming = copy.deepcopy(loader)  # keeps its parent, so that interpolations still resolve
    naming.mapper = NamingMapper(instantiate(loader.mapper), SampleRecord(name))
    dataset = instantiate(loader.dataset) if "dataset" in loader else None
    if isinstance(dataset, list):
        naming.dataset = NumberedDataset(DatasetFromList(dataset, copy=False))
    elif dataset is not None:
        naming.dataset = dataset
    return naming
