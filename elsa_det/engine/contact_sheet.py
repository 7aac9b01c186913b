"""Contact sheets: many annotated images on one page."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

_CAPTION, _GAP = 22, 6  #: pixels
_GROUND, _INK = 255, (40, 40, 40)


def contact_sheet(pictures: Iterable[tuple[np.ndarray, str]], *, columns: int = 4, cell: int = 360) -> np.ndarray:
    """Lay out pictures with a line of writing under each.

    Args:
        pictures: (H, W, 3) uint8 BGR and its caption; scaled to fit a cell, never enlarged beyond it.
        columns: pictures in a row.
        cell: side of a picture's square in pixels.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ValueError: there are no pictures, or ``columns`` or ``cell`` is not positive.
    """
    cells = [_cell(picture, caption, cell) for picture, caption in pictures]
    if not cells or columns < 1 or cell < 1:
        raise ValueError(f"nothing to lay out: {len(cells)} pictures in {columns} columns of {cell} pixels")
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    height, width = cells[0].shape[:2]
    sheet = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _GROUND, dtype=np.uint8
    )  # fmt: skip
    for index, drawn in enumerate(cells):
        row, column = divmod(index, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        sheet[top : top + height, left : left + width] = drawn
    return sheet


def evenly(count: int, total: int) -> list[int]:
    """``count`` indices spread evenly over ``range(total)``; all of them if there are fewer."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _cell(picture: np.ndarray, caption: str, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    drawn = np.full((side + _CAPTION, side, 3), _GROUND, dtype=np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    drawn[top : top + size[1], left : left + size[0]] = picture
    longest = side // 8  # characters of the font below
    if len(caption) > longest:
        caption = "..." + caption[-(longest - 3) :]
    cv2.putText(drawn, caption, (4, side + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return drawn
