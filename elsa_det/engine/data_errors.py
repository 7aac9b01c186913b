"""Files that cannot be read while training end it with a message that names them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..d2 import detection_utils, instantiate
from ..errors import UserError

# UnidentifiedImageError and truncated files are OSErrors; Pillow raises SyntaxError for some broken ones.
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError, detection_utils.SizeMismatchError)


class NamingMapper:
    """A mapper that says which image it was at, where the file cannot be read or has another size than it should.

    Args:
        mapper: makes of a dataset dict what the model takes.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        """Map an image.

        Raises:
            UserError: the image cannot be read.
            FileNotFoundError: it is not there.
        """
        try:
            return self.mapper(dataset_dict)
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


def with_named_errors(loader: Any) -> Any:
    """The config of a loader whose mapper names the image in its errors; the given one is kept."""
    if "mapper" not in loader:
        return loader
    naming = copy.deepcopy(loader)  # keeps its parent, so that interpolations still resolve
    naming.mapper = NamingMapper(instantiate(loader.mapper))
    return naming
