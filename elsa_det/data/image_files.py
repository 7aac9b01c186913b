"""Image files looked at without training on them: size, and whether they are whole."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import UserError
from ..images import open_image

#: with what a whole file ends, by Pillow's name of the format
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class UnreadableImage(ValueError):
    """What is wrong with an image file, in a few words."""


def image_size(path: str | Path, *, decode: bool) -> tuple[int, int]:
    """(width, height) of an image once it is turned upright.

    Args:
        path: the file.
        decode: decode all of it; otherwise only a JPEG or PNG that does not end as a whole one does.

    Raises:
        UnreadableImage: the file is truncated, no image, or larger than is read.
    """
    try:
        with open_image(path, "the image") as opened:
            if decode or not _ends_as_it_should(path, opened.format):
                return ImageOps.exif_transpose(opened).size
            return _upright_size(opened)
    except UserError as error:  # too large
        raise UnreadableImage(str(error)) from error
    except Exception as error:  # Pillow raises anything for damaged files
        raise UnreadableImage(
            "image is truncated" if "truncated" in str(error) else f"image cannot be read: {str(error)[:120]}"
        ) from error


def _ends_as_it_should(path: str | Path, kind: str | None) -> bool:
    end = _ENDS.get(kind or "")
    if end is None:
        return True
    with open(path, "rb") as file:
        file.seek(-min(len(end), os.path.getsize(path)), os.SEEK_END)
        return file.read() == end


def _upright_size(opened: Image.Image) -> tuple[int, int]:
    """Size after the rotation that EXIF asks for, without decoding."""
    exif = Image.Exif()
    if "exif" in opened.info:  # getexif() would decode a PNG
        exif.load(opened.info["exif"])
    orientation = exif.get(0x0112, 1)
    return opened.size[::-1] if orientation in (5, 6, 7, 8) else opened.size
