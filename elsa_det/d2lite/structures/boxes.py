"""Axis-aligned boxes, and how much pairs of them overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

AnyBox = TypeVar("AnyBox", list[float], tuple[float, ...], np.ndarray, Tensor)


@unique
class BoxMode(IntEnum):
    """What the numbers of a box mean. ``ABS`` is pixels, ``REL`` a share of the image size.

    The values are those found in saved datasets; :meth:`convert` goes between the first two.
    """

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: AnyBox, from_mode: BoxMode, to_mode: BoxMode) -> AnyBox:
        """The same box or boxes in another mode; the input is left as it is.

        Args:
            box: a list or tuple of four numbers, or an array or tensor of shape (..., 4).
            from_mode: the mode of ``box``.
            to_mode: the mode wanted.

        Returns:
            The type of ``box``. Lists and tuples of fractions are worked on in float32.

        Raises:
            ValueError: ``box`` does not have four numbers.
            NotImplementedError: a mode other than ``XYXY_ABS`` and ``XYWH_ABS``.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(
                f"BoxMode.convert cannot go from {from_mode.name} to {to_mode.name}: "
                "only XYXY_ABS and XYWH_ABS are supported."
            )
        if isinstance(box, (list, tuple)):
            converted: Any = torch.tensor(box)
        elif isinstance(box, np.ndarray):
            converted = box.copy()
        else:
            converted = box.clone()
        if converted.ndim == 0 or converted.shape[-1] != 4:
            raise ValueError(f"BoxMode.convert: a box has four numbers, but this has shape {tuple(converted.shape)}.")
        if to_mode == BoxMode.XYXY_ABS:
            converted[..., 2:] += converted[..., :2]
        else:
            converted[..., 2:] -= converted[..., :2]
        if isinstance(box, (list, tuple)):
            return cast(AnyBox, type(box)(converted.tolist()))
        return converted


class Boxes:
    """The boxes of one image.

    Indexing, ``len``, iteration, ``to`` and ``device`` are those of the tensor; one index keeps the row.

    Attributes:
        tensor: (N, 4), float32, XYXY in pixels.

    Args:
        tensor: anything ``torch.as_tensor`` takes, of shape (N, 4) or empty.

    Raises:
        ValueError: the shape is another.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence[Sequence[float]]) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device="cpu")
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"Boxes must be of shape (N, 4), but these are {tuple(tensor.shape)}.")
        self.tensor = tensor

    def clone(self) -> Boxes:
        """A copy that shares nothing."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        """The boxes on ``device``; they stay float32."""
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def _sides(self) -> Tensor:
        """(N, 2): width and height."""
        return self.tensor[:, 2:] - self.tensor[:, :2]

    def area(self) -> Tensor:
        """(N,): square pixels."""
        width, height = self._sides().unbind(1)
        return width * height

    def clip(self, box_size: tuple[int, int]) -> None:
        """Cut the boxes, in place, to an image of that height and width.

        Raises:
            ValueError: a coordinate is infinite or NaN.
        """
        finite = torch.isfinite(self.tensor)
        if not finite.all():
            bad = int((~finite.all(dim=1)).sum())
            raise ValueError(f"Boxes.clip: {bad} of {len(self)} boxes contain an infinite or NaN coordinate.")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x, y), dim=2).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides are longer than ``threshold`` pixels."""
        return (self._sides() > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: sticks out of an image of that height and width by at most ``boundary_threshold`` pixels."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(-1)
        begins_inside = (x0 >= -boundary_threshold) & (y0 >= -boundary_threshold)
        return begins_inside & (x1 < width + boundary_threshold) & (y1 < height + boundary_threshold)

    def get_centers(self) -> Tensor:
        """(N, 2): x and y of the centres."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        """All boxes in one object that shares nothing with the parts; of no parts, no boxes."""
        if len(boxes_list) == 0:
            return cls(torch.empty(0, 4))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]))

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        rows = self.tensor[item]
        if isinstance(item, int):
            rows = rows[None]
        if rows.dim() != 2:
            raise ValueError(f"Boxes[{item}] is no list of boxes: its shape is {tuple(rows.shape)}.")
        return Boxes(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The boxes as tensors of shape (4,)."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): the area that box ``i`` of the first and box ``j`` of the second share."""
    a, b = boxes1.tensor[:, None], boxes2.tensor
    sides = (torch.min(a[..., k + 2], b[:, k + 2]) - torch.max(a[..., k], b[:, k]) for k in (0, 1))
    width, height = (side.clamp_(min=0) for side in sides)
    return width * height


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): intersection over union; 0 for pairs that do not meet, empty boxes among them."""
    shared = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - shared
    return _share(shared, union)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): intersection over the area of the box of the second; 0 for pairs that do not meet."""
    return _share(pairwise_intersection(boxes1, boxes2), boxes2.area())


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(part > 0, part / whole, torch.zeros_like(part))
