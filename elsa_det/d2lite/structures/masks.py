"""Instance masks: as bitmaps and as polygons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from torch import Tensor

from ..layers.roi_align import ROIAlign
from .boxes import Boxes


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """The area of a polygon by the shoelace formula, from the coordinates of its corners."""
    return 0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of some polygons, (height, width) bool, drawn as COCO draws it.

    Args:
        polygons: ``[x0, y0, x1, y1, …]`` each, in pixels.
        height: of the image.
        width: of the image.
    """
    if len(polygons) == 0:  # pycocotools knows no empty list
        return np.zeros((height, width), dtype=bool)
    pieces = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.decode(coco_mask.merge(pieces)).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> Tensor:
    """The part of one instance that a box sees, at the resolution of a mask head.

    Args:
        polygons: of the instance, ``[x0, y0, x1, y1, …]`` each, in pixels of the image.
        box: (4,), XYXY.
        mask_size: side of the result.

    Returns:
        (mask_size, mask_size) bool.
    """
    # sides below a tenth of a pixel would blow the polygon up without bound
    zoom = [mask_size / max(side, 0.1) for side in box[2:] - box[:2]]
    seen = [((p.reshape(-1, 2) - box[:2]) * np.asarray(zoom, dtype=np.float64)).reshape(-1) for p in polygons]
    return torch.from_numpy(polygons_to_bitmask(seen, mask_size, mask_size))


def _require_one_box_a_mask(boxes: Tensor, masks: BitMasks | PolygonMasks) -> None:
    if len(boxes) != len(masks):
        raise ValueError(f"crop_and_resize: {len(masks)} masks need as many boxes, but there are {len(boxes)}.")


class BitMasks:
    """The masks of one image as bitmaps.

    Attributes:
        tensor: (N, H, W) bool.
        image_size: height and width.

    Args:
        tensor: (N, H, W), anything that ``torch.as_tensor`` makes bool.

    Raises:
        ValueError: the shape is another.
    """

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.bool, device="cpu")
        if tensor.dim() != 3:
            raise ValueError(f"BitMasks must be of shape (N, H, W), but these are {tuple(tensor.shape)}.")
        self.tensor = tensor.to(torch.bool)
        self.image_size = self.tensor.shape[1:]

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        taken = self.tensor[item]
        return BitMasks(taken[None] if isinstance(item, int) else taken)

    def __iter__(self) -> Iterator[Tensor]:
        """The masks as tensors of shape (H, W)."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """(N,) bool: some pixel is set."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """Draw polygons, those of each instance together, on an image of that size."""
        instances = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        bitmaps = torch.zeros(len(instances), height, width, dtype=torch.bool)
        for bitmap, polygons in zip(bitmaps, instances):
            bitmap.copy_(torch.from_numpy(polygons_to_bitmask(polygons, height, width)))
        return BitMasks(bitmaps)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """The targets of a mask head: mask ``i`` inside of box ``i``.

        Args:
            boxes: (N, 4), XYXY.
            mask_size: side of the result.

        Returns:
            (N, mask_size, mask_size) bool.

        Raises:
            ValueError: there are not as many boxes as masks.
        """
        _require_one_box_a_mask(boxes, self)
        boxes = boxes.to(self.device)
        index = torch.arange(len(boxes), device=self.device).to(boxes.dtype)
        pool = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        return pool(self.tensor[:, None].float(), torch.cat((index[:, None], boxes), dim=1))[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The tight boxes, on the CPU; all zeros for a mask without a pixel."""
        ranges = [_first_and_end(self.tensor.any(dim=axis)) for axis in (1, 2)]  # of columns, of rows
        boxes = torch.stack((ranges[0][0], ranges[1][0], ranges[0][1], ranges[1][1]), dim=1)
        return Boxes((boxes * self.nonempty()[:, None]).cpu())

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """All masks in one object."""
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


def _first_and_end(used: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the first true entry of each row, and the one behind the last."""
    length = used.shape[1]
    position = torch.arange(length, device=used.device)
    first = position.where(used, length).amin(dim=1)
    end = (position + 1).where(used, 0).amax(dim=1)
    return first, end


class PolygonMasks:
    """The masks of one image as polygons. They are small, so they stay on the CPU.

    Attributes:
        polygons: for each instance its polygons, float64 ``[x0, y0, x1, y1, …]`` in pixels.

    Args:
        polygons: the same, arrays, tensors or lists of numbers.

    Raises:
        ValueError: a level is no list, or a polygon has an odd number of coordinates or less than six.
    """

    def __init__(self, polygons: list[list[Any]]) -> None:
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks takes a list of instances, not {type(polygons).__name__}.")
        self.polygons: list[list[np.ndarray]] = [_check_instance(instance) for instance in polygons]

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """The object itself: polygons do not move."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The polygons of each instance."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """The instances of a number, slice, list of numbers, integer tensor or bool tensor of length N.

        Raises:
            ValueError: a bool tensor of another shape, or a tensor of fractions.
        """
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, Tensor):
            if item.dtype == torch.bool:
                if item.shape != (len(self),):
                    raise ValueError(f"PolygonMasks[mask]: {len(self)} masks, but the mask is {tuple(item.shape)}.")
                item = item.nonzero()[:, 0]
            elif item.is_floating_point() or item.is_complex():
                raise ValueError(f"PolygonMasks cannot be indexed with a tensor of {item.dtype}.")
            item = item.reshape(-1).tolist()
        return PolygonMasks([self.polygons[i] for i in item])

    def get_bounding_boxes(self) -> Boxes:
        """The tight boxes. An instance without a polygon gets ``(inf, inf, 0, 0)``, which counts as empty."""
        boxes = torch.zeros(len(self), 4)
        for box, polygons in zip(boxes, self.polygons):
            corners = torch.tensor(np.concatenate([[], *polygons]), dtype=torch.float32).reshape(-1, 2)
            # images begin at zero: no box ends before it
            box[:2] = torch.cat((corners, corners.new_full((1, 2), torch.inf))).amin(dim=0)
            box[2:] = torch.cat((corners, corners.new_zeros(1, 2))).amax(dim=0)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """(N,) bool: there is a polygon."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """The targets of a mask head: mask ``i`` inside of box ``i``.

        Args:
            boxes: (N, 4), XYXY.
            mask_size: side of the result.

        Returns:
            (N, mask_size, mask_size) bool, where the boxes are.

        Raises:
            ValueError: there are not as many boxes as masks.
        """
        _require_one_box_a_mask(boxes, self)
        cropped = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool)
        for target, polygons, box in zip(cropped, self.polygons, boxes.cpu().numpy()):
            target.copy_(rasterize_polygons_within_box(polygons, box, mask_size))
        return cropped.to(boxes.device)

    def area(self) -> Tensor:
        """(N,) float64: the areas of the polygons of each instance, added up, in square pixels."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """All instances in one object."""
        return PolygonMasks([polygons for masks in polymasks_list for polygons in masks.polygons])


def _check_instance(polygons: Any) -> list[np.ndarray]:
    if not isinstance(polygons, list):
        raise ValueError(f"PolygonMasks takes a list of polygons for each instance, not {type(polygons).__name__}.")
    checked = [np.array(p.cpu() if isinstance(p, Tensor) else p, dtype=np.float64) for p in polygons]
    for polygon in checked:
        if polygon.ndim != 1 or len(polygon) % 2 != 0 or len(polygon) < 6:
            raise ValueError(
                "A polygon is a flat list of at least six coordinates, x and y by turns, but this one has the shape "
                f"{polygon.shape}. Remove it from the annotations or repair it."
            )
    return checked
