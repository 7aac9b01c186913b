"""Features of regions, each taken from the pyramid level that fits its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from ..layers import ROIAlign, cat
from ..structures import Boxes

__all__ = ["ROIPooler"]


def assign_boxes_to_levels(
    box_lists: list[Boxes], min_level: int, max_level: int, canonical_box_size: float, canonical_level: int
) -> Tensor:
    """The pyramid level of every box, eq. 1 of the FPN paper.

    Returns:
        int64, one for each box of all images together: 0 stands for ``min_level``. A box with the area
        ``canonical_box_size ** 2`` (pixels²) is at ``canonical_level``, one with twice the side a level higher.
    """
    sides = cat([boxes.area() for boxes in box_lists]).sqrt()
    octaves = torch.log2(sides / canonical_box_size + 1e-8)  # above the canonical level; finite for empty boxes
    return (octaves + canonical_level).floor().clamp(min_level, max_level).long() - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> Tensor:
    """The boxes of all images together as (M, 5): index of the image in the batch, x0, y0, x1, y1."""
    boxes = torch.cat([boxes.tensor for boxes in box_lists])
    image_index = torch.cat([boxes.tensor.new_full((len(boxes), 1), i) for i, boxes in enumerate(box_lists)])
    return torch.cat([image_index, boxes], dim=1)


def _pyramid_levels(scales: Sequence[float]) -> tuple[int, int]:
    """Lowest and highest level of ``scales``, where level k is the scale 1 / 2**k."""
    levels = [-math.log2(scale) for scale in scales]
    low, high = round(levels[0]), round(levels[-1])
    exact = math.isclose(levels[0], low, abs_tol=1e-9) and math.isclose(levels[-1], high, abs_tol=1e-9)
    if not exact or low < 0 or len(levels) != high - low + 1:
        raise ValueError(
            f"ROIPooler: scales must be 1 / 2**k for successive k >= 0, from fine to coarse, got {scales}."
        )
    return low, high


class ROIPooler(nn.Module):
    """Pools regions from one or more feature maps to features of a fixed size."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        """
        Args:
            output_size: side of the pooled features, or (height, width).
            scales: 1 / stride of each feature map, each half of the one before.
            sampling_ratio: samples for each output bin and direction in ROIAlign; 0 chooses by the size of the box.
            pooler_type: "ROIAlignV2" (corrected by half a pixel), "ROIAlign" or "ROIPool".
            canonical_box_size: side, in pixels, of the boxes that go to ``canonical_level``: 224 as in ImageNet.
            canonical_level: 4, that is stride 16. Boxes beyond the lowest or highest level go to that level.

        Raises:
            ValueError: an unknown pooler, or sizes and scales that are not as described.
        """
        super().__init__()
        size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        if len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise ValueError(f"ROIPooler: output_size must be an int or two, got {output_size!r}.")
        if canonical_box_size <= 0:
            raise ValueError(f"ROIPooler: canonical_box_size must be above 0, got {canonical_box_size}.")
        self.output_size = size
        self.min_level, self.max_level = _pyramid_levels(scales)
        self.canonical_level = canonical_level
        self.canonical_box_size = canonical_box_size
        if pooler_type in ("ROIAlign", "ROIAlignV2"):
            aligned = pooler_type == "ROIAlignV2"
            poolers: list[nn.Module] = [ROIAlign(size, scale, sampling_ratio, aligned=aligned) for scale in scales]
        elif pooler_type == "ROIPool":
            poolers = [RoIPool(size, spatial_scale=scale) for scale in scales]
        else:
            raise ValueError(f"ROIPooler: pooler_type={pooler_type!r} is unknown; use ROIAlignV2, ROIAlign or ROIPool.")
        self.level_poolers = nn.ModuleList(poolers)

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: feature maps (N, C, H, W), one for each scale.
            box_lists: for each of N images its boxes, in pixels of the input image.

        Returns:
            (M, C, height, width) for the M boxes of all images together.

        Raises:
            ValueError: the number of feature maps or of images is not as expected.
        """
        if len(x) != len(self.level_poolers):
            raise ValueError(f"ROIPooler: made for {len(self.level_poolers)} feature maps, got {len(x)}.")
        if len(box_lists) != x[0].shape[0]:
            raise ValueError(f"ROIPooler: {len(box_lists)} lists of boxes for a batch of {x[0].shape[0]} images.")
        if not box_lists:
            return x[0].new_zeros((0, x[0].shape[1], *self.output_size))
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        pooled = x[0].new_zeros((rois.shape[0], x[0].shape[1], *self.output_size))
        for level, (feature, pooler) in enumerate(zip(x, self.level_poolers)):
            index = torch.nonzero(levels == level).flatten()
            pooled.index_put_((index,), pooler(feature, rois[index]))
        return pooled
