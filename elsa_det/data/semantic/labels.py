"""Label maps on disk: how classes are written into pixels, and how files are read and checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...images import open_image

IGNORE_LABEL = 255
"""Pixels of this label are neither trained on nor counted, unless a dataset says otherwise."""

_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_LARGEST = 2**16 - 1
_SHOWN = 8


@dataclass(frozen=True)
class LabelEncoding:
    """Which pixel value of a label file stands for which class; in training, classes are 0 … num_classes - 1."""

    stored_ids: tuple[int, ...]
    """The pixel value of each class, in 0..65535."""
    ignored_ids: tuple[int, ...] = (IGNORE_LABEL,)
    """Pixel values that become :attr:`ignore_label`. What is in neither of the two is an error in the file."""
    ignore_label: int = IGNORE_LABEL

    def __post_init__(self) -> None:
        if not self.stored_ids:
            raise UserError("a dataset needs at least one class, got none")
        known = [*self.stored_ids, *self.ignored_ids]
        if len(set(known)) != len(known):
            twice = sorted({value for value in known if known.count(value) > 1})
            raise UserError(
                f"the label values {twice} stand for two things (classes {_short(self.stored_ids)}, ignored "
                f"{_short(self.ignored_ids)}): choose an ignore_label outside the classes"
            )
        if any(not 0 <= value <= _LARGEST for value in known):
            raise UserError(f"label values are pixels in 0..{_LARGEST}, got {sorted(known)[0]}..{sorted(known)[-1]}")
        if 0 <= self.ignore_label < len(self.stored_ids):
            raise UserError(
                f"ignore_label={self.ignore_label} is the index of a class: choose one of {len(self.stored_ids)} or "
                "more, such as 255"
            )

    @property
    def num_classes(self) -> int:
        return len(self.stored_ids)

    @property
    def dtype(self) -> Any:
        """What training labels fit in: uint8, or int32 where that is too small."""
        return np.uint8 if max(self.num_classes - 1, self.ignore_label) <= 255 else np.int32

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Pixel values of a file, (H, W) of integers, as training labels of the same shape.

        Raises:
            UnknownLabels: there are values that stand for nothing.
        """
        size = max(max(self.stored_ids), max(self.ignored_ids, default=0)) + 1
        table = np.full(size, -1, dtype=np.int64)
        table[list(self.ignored_ids)] = self.ignore_label
        table[list(self.stored_ids)] = np.arange(self.num_classes)
        inside = (stored >= 0) & (stored < size)
        labels = table[np.where(inside, stored, 0)]
        unknown = ~inside | (labels < 0)
        if unknown.any():
            raise UnknownLabels(stored, unknown)
        return labels.astype(self.dtype)

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Training labels (H, W), without ignored ones, as pixel values of a file: uint8, or uint16 if needed."""
        dtype = np.uint8 if max(self.stored_ids) <= 255 else np.uint16
        return np.asarray(self.stored_ids, dtype=dtype)[labels]


class UnknownLabels(ValueError):
    """Pixel values that stand for no class and are not ignored."""

    def __init__(self, stored: np.ndarray, unknown: np.ndarray) -> None:
        self.values = np.unique(stored[unknown]).tolist()
        self.pixels = int(unknown.sum())
        self.first = tuple(int(index) for index in np.argwhere(unknown)[0])
        super().__init__(
            f"{self.pixels} pixels of the values {_short(self.values)}, the first at row, column {self.first}"
        )


def plain_encoding(num_classes: int, ignore_label: int = IGNORE_LABEL) -> LabelEncoding:
    """Pixels are class indices 0 … num_classes - 1, and ``ignore_label``."""
    return LabelEncoding(tuple(range(num_classes)), (ignore_label,), ignore_label)


def zero_ignored_encoding(num_classes: int, ignore_label: int = IGNORE_LABEL) -> LabelEncoding:
    """Pixels are 1 … num_classes for the classes; 0 ("other") and ``ignore_label`` are ignored."""
    return LabelEncoding(tuple(range(1, num_classes + 1)), (0, ignore_label), ignore_label)


def read_labels(
    path: str | os.PathLike[str],
    encoding: LabelEncoding,
    *,
    size: tuple[int, int] | None = None,
    image: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Read a label map as training labels.

    Palette images count as what they store, indices; 16-bit images are read whole.

    Args:
        path: The label file.
        encoding: What its pixels mean.
        size: (height, width) that it must have: that of its image.
        image: The image, named in the message if the sizes differ.

    Returns:
        (H, W) uint8 (int32 where the classes need it): class indices and ``encoding.ignore_label``.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read, holds colours instead of indices or values that stand for no class, or has
            another size. The message names the file, the value and the remedy.
    """
    stored = read_index_image(path)
    if size is not None and stored.shape != tuple(size):
        partner = f"its image {image}" if image is not None else "its image"
        raise UserError(
            f"label file {path} is {stored.shape[1]}×{stored.shape[0]} pixels (width×height), {partner} is "
            f"{size[1]}×{size[0]}: labels need one pixel for each pixel of the image; resize them with "
            "nearest-neighbour interpolation, or pair the right files"
        )
    try:
        return encoding.decode(stored)
    except UnknownLabels as unknown:
        raise UserError(f"label file {path} has {unknown}. {_remedy(unknown, encoding)}") from None


def read_index_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The pixel values of a one-channel image (H, W), as stored: palette indices, 8 or 16 bits.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read, or has colours instead of indices.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"label file {path} does not exist (looked for {Path(path).absolute()})")
    try:
        with open_image(path, f"label file {path}") as opened:
            mode = opened.mode
            stored = np.asarray(opened) if mode in _INDEX_MODES else None
    except UserError:
        raise
    except Exception as error:  # Pillow raises anything for damaged files
        raise UserError(
            f"label file {path} cannot be read: {error}. It is truncated or no image: restore it, or take it and its "
            "image out of the dataset"
        ) from error
    if stored is None:
        raise UserError(
            f"label file {path} has the pixel format {mode}, colours rather than class indices: a label map has one "
            "channel whose pixels are class indices (8-bit or 16-bit grey, or a palette). Convert each colour to the "
            "index of its class first"
        )
    return stored.astype(np.int64)


def _remedy(unknown: UnknownLabels, encoding: LabelEncoding) -> str:
    known = f"The dataset has {encoding.num_classes} classes, stored as {_short(encoding.stored_ids)}"
    ignored = f", and ignores {_short(encoding.ignored_ids)}"
    if encoding.stored_ids[0] == 0 and unknown.values == [encoding.num_classes]:
        hint = "if the file counts its classes from 1 and 0 is to be ignored, set dataset.reduce_zero_label=True; else "
    elif min(unknown.values) > 255:
        hint = "if these are instance ids (16 bits), use the files with class indices; else "
    else:
        hint = ""
    return f"{known}{ignored}: {hint}set dataset.num_classes or dataset.ignore_label to fit, or correct the file"


def _short(values: Sequence[int]) -> str:
    """``0..149``, or ``[3, 7, 9]``, or the first of many."""
    ordered = sorted(values)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}..{ordered[-1]}"
    more = ", …" if len(ordered) > _SHOWN else ""
    return f"[{', '.join(map(str, ordered[:_SHOWN]))}{more}]"
