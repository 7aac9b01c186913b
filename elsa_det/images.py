"""How large an image may be, looked at before it is decoded."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from .d2 import PathManager, detection_utils
from .errors import UserError

LIMIT_VARIABLE = "ELSA_DET_MAX_IMAGE_PIXELS"
"""Environment variable with the most pixels that an image, label map or video frame may have."""
MAX_PIXELS = 178_956_970
"""What it is by default: Pillow's own limit, half a gigabyte of colours."""
MAX_SIDE = 32_767
"""The longest side in pixels; OpenCV does not transform longer ones."""


def max_pixels() -> int:
    """
    Raises:
        UserError: the environment variable is not a positive whole number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or str(MAX_PIXELS)
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{LIMIT_VARIABLE}={text} in the environment must be a number of pixels, such as {MAX_PIXELS}")
    return int(text)


def check_size(width: float, height: float, what: str) -> None:
    """Raise if an image is larger than is read.

    Args:
        width, height: in pixels.
        what: the image, for the message.

    Raises:
        UserError: it is.
    """
    limit = max_pixels()
    if width * height > limit:
        raise UserError(
            f"{what} is {width:,.0f}×{height:,.0f} pixels (width×height), {width * height:,.0f} in all, and no more "
            f"than {limit:,} are read: scale it down or cut it into tiles, or raise {LIMIT_VARIABLE} in the environment"
        )
    if max(width, height) > MAX_SIDE:
        raise UserError(
            f"{what} is {width:,.0f}×{height:,.0f} pixels (width×height), and sides up to {MAX_SIDE:,} are read: scale "
            "it down or cut it into tiles"
        )


@contextmanager
def open_image(path: str | os.PathLike[str], what: str | None = None) -> Iterator[Image.Image]:
    """Open an image of a size that is read; nothing but its header has been looked at yet.

    Raises:
        UserError: it is too large.
        OSError, SyntaxError, ValueError: Pillow cannot read it.
    """
    with PathManager.open(os.fspath(path), "rb") as file, _open(file, what or f"image {path}") as opened:
        yield opened


def _open(file: Any, what: str) -> Image.Image:
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit // 2 + 1  # Pillow refuses twice as many
    try:
        opened = Image.open(file)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{what}: {error}; no more than {limit:,} pixels are read: scale it down or cut it into tiles, or raise "
            f"{LIMIT_VARIABLE} in the environment"
        ) from error
    try:
        check_size(*opened.size, what)
    except UserError:
        opened.close()
        raise
    return opened


def limit_provider() -> None:
    """Have the provider's data mappers check sizes as well: ``detection_utils.read_image`` is what they read with."""
    if not hasattr(detection_utils.read_image, "__wrapped__"):
        detection_utils.read_image = _limited(detection_utils.read_image)


def _limited(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    @functools.wraps(read)
    def read_image(file_name: str, format: str | None = None) -> np.ndarray:
        try:
            if PathManager.isfile(str(file_name)):
                with open_image(file_name):
                    pass
            return read(file_name, format)
        except (UserError, OSError):  # those of d2lite name the file
            raise
        except Exception as error:  # Pillow raises anything for damaged files
            raise UserError(f"image {file_name} cannot be read: {type(error).__name__}: {error}") from error

    return read_image
