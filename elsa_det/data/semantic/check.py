"""Faults of folders of images and label maps, found before a training meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ..coco_check import AUTO, FEW, NAMES, PIXELS
from ..image_files import UnreadableImage, image_size
from .labels import LabelEncoding, read_labels

_DECODED = 200  #: label maps that "headers" decodes: a few seconds at most
_SHOWN = 5


@dataclass
class SemanticReport:
    """What was looked at, and the faults, each with its file and the remedy."""

    place: str
    images: int
    decoded: int = 0  #: label maps of which every pixel was looked at
    errors: list[str] = field(default_factory=list)

    def raise_for_errors(self) -> None:
        """Raise a :class:`UserError` that lists the first errors, if there are any."""
        if self.errors:
            more = [f"… and {len(self.errors) - _SHOWN} more"] if len(self.errors) > _SHOWN else []
            listed = "\n".join([*self.errors[:_SHOWN], *more])
            raise UserError(f"{len(self.errors)} error(s) in {self.place}:\n{listed}")


def check_pairs(entries: Sequence[dict[str, Any]], encoding: LabelEncoding, place: str, look: str) -> SemanticReport:
    """Look at images and their label maps as training would read them.

    Args:
        entries: dataset dicts with "file_name" and "sem_seg_file_name".
        encoding: what the pixels of the label maps mean.
        place: what to call the dataset in messages.
        look: "names" (nothing more: pairing has found the files), "headers" (sizes, and up to 200 of the label maps
            decoded), "pixels" (every file is decoded), or "auto": "headers" for up to 2,000 images, "names" for more.
    """
    report = SemanticReport(place, len(entries))
    if look == NAMES or (look == AUTO and len(entries) > FEW):
        return report
    count = len(entries) if look == PIXELS else min(_DECODED, len(entries))
    chosen = {int(i) for i in np.linspace(0, len(entries) - 1, count)}
    for index, entry in enumerate(entries):
        try:
            _check_pair(entry, encoding, decode_labels=index in chosen, decode_image=look == PIXELS)
        except UnreadableImage as error:
            report.errors.append(
                f"{entry['file_name']}: {error}. Replace the file, or take it and its label map out of the dataset"
            )
        except (UserError, FileNotFoundError) as error:
            report.errors.append(str(error))
    report.decoded = len(chosen)
    return report


def _check_pair(entry: dict[str, Any], encoding: LabelEncoding, *, decode_labels: bool, decode_image: bool) -> None:
    image, labels = entry["file_name"], entry["sem_seg_file_name"]
    width, height = image_size(image, decode=decode_image)
    if decode_labels:
        read_labels(labels, encoding, size=(height, width), image=image)
        return
    try:
        with Image.open(labels) as opened:
            same = opened.size == (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        same = False
    if not same:
        read_labels(labels, encoding, size=(height, width), image=image)  # says what is wrong
