"""From a mask to polygons that cover exactly its pixels."""

from __future__ import annotations

import numpy as np

Corner = tuple[int, int]


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask along its pixel edges, as COCO polygons.

    Pixel (row, column) is the square from (x, y) = (column, row) to (column + 1, row + 1). A polygon has no hole: a
    mask with one is cut along a row through it, and its parts are outlined. Parts that touch at a corner only are
    separate polygons. ``pycocotools`` turns the polygons back into the very same mask.

    Args:
        mask: (H, W) bool.

    Returns:
        Polygons ``[x0, y0, x1, y1, …]`` in pixels, corners only, clockwise as seen on the screen.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise TypeError(f"The mask must be a two-dimensional bool array, got {mask.dtype} of shape {mask.shape}.")
    loops = _loops(mask)
    hole = next((loop for loop in loops if _twice_area(loop) < 0), None)
    if hole is None:
        return [[coordinate for corner in loop for coordinate in corner] for loop in loops]
    rows = [y for _, y in hole]
    cut = (min(rows) + max(rows)) // 2
    upper, lower = mask.copy(), mask.copy()
    upper[cut:] = False
    lower[:cut] = False
    return mask_to_polygons(upper) + mask_to_polygons(lower)


def _loops(mask: np.ndarray) -> list[list[Corner]]:
    """Closed walks along the mask's border with the mask on the right-hand side, corners only."""
    padded = np.pad(mask, 1)
    exits: dict[Corner, list[Corner]] = {}

    def edges(where: np.ndarray, start: Corner, step: Corner) -> None:
        for row, column in np.argwhere(where).tolist():
            exits.setdefault((column + start[0], row + start[1]), []).append(step)

    inner = padded[1:-1, 1:-1]
    edges(inner & ~padded[:-2, 1:-1], (0, 0), (1, 0))  # top edges run right,
    edges(inner & ~padded[1:-1, 2:], (1, 0), (0, 1))  # right edges down,
    edges(inner & ~padded[2:, 1:-1], (1, 1), (-1, 0))  # bottom edges left,
    edges(inner & ~padded[1:-1, :-2], (0, 1), (0, -1))  # left edges up

    loops = []
    while exits:
        start = min(exits)
        loop: list[Corner] = []
        point, step = start, exits[start][0]
        while True:
            options = exits[point]
            # Where two pixels touch at a corner, turn right: round the same pixel, not across to the other.
            right = (-step[1], step[0])
            following = right if right in options else options[0]
            options.remove(following)
            if not options:
                del exits[point]
            if following != step or not loop:
                loop.append(point)
            step = following
            point = (point[0] + step[0], point[1] + step[1])
            if point == start:
                break
        loops.append(loop)
    return loops


def _twice_area(loop: list[Corner]) -> int:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1]))
