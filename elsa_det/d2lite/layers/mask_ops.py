"""Pasting the small masks a mask head predicts for its boxes into the image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GPU_MEM_LIMIT = 1024**3
"""Bytes that the float masks pasted at once on a GPU may take."""

_BYTES_PER_FLOAT = 4


def paste_masks_in_image(masks: Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resample box-sized masks to the image grid.

    Args:
        masks: (N, M, M), values in [0, 1].
        boxes: (N, 4) tensor or ``Boxes``, XYXY in pixels of the image; mask ``i`` fills box ``i``.
        image_shape: height and width.
        threshold: a pixel belongs to the object when its value is at least this. Below zero nothing is decided:
            the values come back scaled to [0, 255], as pictures.

    Returns:
        (N, height, width), bool, or uint8 when ``threshold`` is negative.

    Raises:
        ValueError: the masks are not square, or not as many as the boxes.
    """
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if masks.dim() != 3 or masks.shape[-1] != masks.shape[-2]:
        raise ValueError(f"paste_masks_in_image: masks must be of shape (N, M, M), but they are {tuple(masks.shape)}.")
    if len(boxes) != len(masks):
        raise ValueError(f"paste_masks_in_image: {len(masks)} masks need as many boxes, but there are {len(boxes)}.")
    if not masks.dtype.is_floating_point:
        masks = masks.float()

    height, width = int(image_shape[0]), int(image_shape[1])
    pasted = torch.zeros(
        len(masks), height, width, dtype=torch.bool if threshold >= 0 else torch.uint8, device=boxes.device
    )
    if boxes.device.type == "cpu":
        # one at a time, and only the pixels around its box: the least work
        for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            rows, columns = _pixels_around(y0, y1, height), _pixels_around(x0, x1, width)
            if len(rows) and len(columns):
                values = _sample(masks[i : i + 1], boxes[i : i + 1], rows, columns)
                pasted[i : i + 1, rows.start : rows.stop, columns.start : columns.stop] = _decide(values, threshold)
    else:
        # the whole image for many masks together: more work in far fewer kernels
        at_once = max(1, GPU_MEM_LIMIT // max(1, height * width * _BYTES_PER_FLOAT))
        for i in range(0, len(masks), at_once):
            part = slice(i, i + at_once)
            pasted[part] = _decide(_sample(masks[part], boxes[part], range(height), range(width)), threshold)
    return pasted


def _pixels_around(start: float, stop: float, length: int) -> range:
    """The pixels from one before ``start`` to one behind ``stop`` that lie in an image of that length."""
    return range(max(math.floor(start) - 1, 0), min(math.ceil(stop) + 1, length))


def _sample(masks: Tensor, boxes: Tensor, rows: range, columns: range) -> Tensor:
    """The value of each (n, M, M) mask at the centres of those image pixels, zero outside of its box."""

    def relative(pixels: range, first: Tensor, last: Tensor) -> Tensor:
        centres = torch.arange(pixels.start, pixels.stop, device=masks.device, dtype=torch.float32) + 0.5
        return (centres - first[:, None]) / (last - first)[:, None] * 2 - 1  # the box spans [-1, 1]

    x0, y0, x1, y1 = boxes.unbind(dim=1)
    shape = (len(masks), len(rows), len(columns))
    x = relative(columns, x0, x1)[:, None, :].expand(shape)
    y = relative(rows, y0, y1)[:, :, None].expand(shape)
    grid = torch.stack((x, y), dim=-1).to(masks.dtype)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def _decide(values: Tensor, threshold: float) -> Tensor:
    return values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)
