"""Anchor boxes: the same few shapes around every cell of every feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import Boxes
from ..utils.registry import Registry

__all__ = ["ANCHOR_GENERATOR_REGISTRY", "BufferList", "DefaultAnchorGenerator"]

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
"""Modules that make a list of Boxes, one for each feature map."""


class BufferList(nn.Module):
    """A list of tensors that move with the model but are not part of its checkpoint."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for buffer in buffers:
            self.register_buffer(str(len(self)), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([buffer for buffer in self._buffers.values() if buffer is not None])


def _per_level(values: Any, num_levels: int, name: str) -> list[list[float]]:
    """One list of numbers for each level, from such lists, a single such list, or plain numbers for all levels."""
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(f"Anchor generator: {name} must be a list that is not empty, got {values!r}.")
    rows = list(values) if isinstance(values[0], Sequence) else [values]
    if len(rows) == 1:
        rows = rows * num_levels
    if len(rows) != num_levels:
        raise ValueError(f"Anchor generator: {name} has {len(rows)} entries for {num_levels} feature maps.")
    return [list(row) for row in rows]


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of given sizes and aspect ratios, as in Faster R-CNN (Ren et al., NeurIPS 2015)."""

    box_dim: int = 4  # numbers in a box

    def __init__(self, *, sizes: Any, aspect_ratios: Any, strides: Sequence[int], offset: float = 0.5) -> None:
        """
        Args:
            sizes: square roots of the anchor areas, in pixels of the input image: a list for each feature map, or
                one list for all.
            aspect_ratios: height / width of the anchors; lists as for ``sizes``.
            strides: of the feature maps, in pixels.
            offset: in [0, 1), where in its cell an anchor has its centre, in units of the stride.

        Raises:
            ValueError: lists that do not fit the number of strides, or an offset outside of [0, 1).
        """
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"Anchor generator: offset must lie in [0, 1), got {offset}.")
        self.strides = strides
        self.num_features = len(strides)
        self.offset = offset
        levels = zip(
            _per_level(sizes, self.num_features, "sizes"), _per_level(aspect_ratios, self.num_features, "aspect_ratios")
        )
        self.cell_anchors = BufferList([self.generate_cell_anchors(s, r).float() for s, r in levels])

    @property
    def num_anchors(self) -> list[int]:
        """Number of anchors at every cell, for each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """The same as :attr:`num_anchors`."""
        return self.num_anchors

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """The anchors of one cell, centred at the origin: (len(sizes) * len(aspect_ratios), 4) as x0, y0, x1, y1.

        All ratios of the first size come first.
        """
        shapes = itertools.product(sizes, aspect_ratios)  # width * height = size², height / width = ratio
        widths = [(math.sqrt(size**2.0 / ratio), ratio) for size, ratio in shapes]
        corner = torch.tensor([(width, ratio * width) for width, ratio in widths]).reshape(-1, 2) / 2
        return torch.cat((-corner, corner), dim=1)

    def _grid_anchors(self, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each (rows, columns) of ``grid_sizes`` the anchors (rows * columns * A, 4), row by row, cell by cell."""
        levels = []
        for (rows, columns), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors):
            first = self.offset * stride
            ys = torch.arange(first, rows * stride, step=stride, dtype=torch.float32, device=cell.device)
            xs = torch.arange(first, columns * stride, step=stride, dtype=torch.float32, device=cell.device)
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            levels.append((centres + cell).reshape(-1, 4))
        return levels

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """For each feature map (N, C, H, W) its H * W * A anchors, which are the same for all images."""
        return [Boxes(anchors) for anchors in self._grid_anchors([feature.shape[-2:] for feature in features])]
