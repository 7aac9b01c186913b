"""Made-up images with annotations, for measurements where the data are not there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..d2 import BitMasks, Boxes, Instances, PolygonMasks

_SIDES = (0.05, 0.4)  # of an object, as shares of the image's side
_CORNERS = 16  # of the ellipses


def made_up_image(
    size: tuple[int, int], objects: int, num_classes: int, rng: np.random.Generator, mask_format: str = "polygon"
) -> dict[str, Any]:
    """An image of noise with elliptic objects, as a training mapper gives it, for detectors and segmentors alike.

    Args:
        size: (height, width) in pixels.
        objects: how many.
        num_classes: of the objects, and of the labels of the pixels.
        rng: draws everything.
        mask_format: "polygon" or "bitmask".

    Returns:
        ``image`` (3, H, W) uint8; ``height``, ``width``; ``instances`` with ``gt_boxes``, ``gt_classes``, ``gt_masks``;
        and ``sem_seg`` (H, W) int64.
    """
    height, width = size
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2
    sides = rng.uniform(*_SIDES, (objects, 2)) * (width, height)
    centres = sides / 2 + rng.uniform(0, 1, (objects, 2)) * ((width, height) - sides)
    outlines = [[(centre + circle * side).reshape(-1)] for centre, side in zip(centres, sides)]

    instances = Instances(size)
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    instances.gt_boxes = Boxes(torch.from_numpy(corners).float().reshape(-1, 4))
    instances.gt_classes = torch.from_numpy(rng.integers(0, num_classes, objects))
    if mask_format == "bitmask":
        instances.gt_masks = BitMasks.from_polygon_masks(outlines, height, width)
    else:
        instances.gt_masks = PolygonMasks(outlines)

    blocks = torch.from_numpy(rng.integers(0, num_classes, (1, 1, -(-height // 32), -(-width // 32))))
    labels = blocks.repeat_interleave(32, 2).repeat_interleave(32, 3)[0, 0, :height, :width].contiguous()
    return {"image": image, "height": height, "width": width, "instances": instances, "sem_seg": labels}
