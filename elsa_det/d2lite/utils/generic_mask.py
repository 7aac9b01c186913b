"""One mask type for everything that describes a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

__all__ = ["GenericMask"]


class GenericMask:
    """A mask of any source, as a bitmap and as polygons, each made from the other when it is asked for.

    Attributes:
        height, width: Size of the picture in pixels.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int):
        """
        Args:
            mask_or_polygons: A bitmap (H × W), a list of polygons [x0, y0, x1, y1, …], or a COCO run-length code.
            height, width: Size of the picture in pixels.

        Raises:
            ValueError: Not the size of the picture.
            TypeError: None of the above.
        """
        self.height, self.width = height, width
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._has_holes: bool | None = None
        if isinstance(mask_or_polygons, Mapping):
            rle = mask_or_polygons
            self._check_size(tuple(rle["size"]))
            if isinstance(rle["counts"], list):
                rle = mask_util.frPyObjects(rle, height, width)
            self._mask = mask_util.decode(rle)
        elif isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(polygon).reshape(-1) for polygon in mask_or_polygons]
            self._has_holes = False
        elif isinstance(mask_or_polygons, np.ndarray):
            self._check_size(mask_or_polygons.shape)
            self._mask = mask_or_polygons.astype(np.uint8)
        else:
            raise TypeError(
                f"GenericMask: a {type(mask_or_polygons).__name__} is no mask; "
                "use a bitmap (NumPy), a list of polygons, or a COCO run-length code (dict)."
            )

    def _check_size(self, size: tuple[int, ...]) -> None:
        if size != (self.height, self.width):
            raise ValueError(f"GenericMask: the mask is {size}, the picture {(self.height, self.width)} (H, W).")

    @property
    def mask(self) -> np.ndarray:
        """H × W, 0 and 1, uint8."""
        if self._mask is None:
            self._mask = mask_util.decode(self._merged_rle())
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines [x0, y0, x1, y1, …] in pixels, those of holes among them."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self.mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the bitmap has holes; polygons that were given count as having none."""
        if self._has_holes is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self.mask)
        return self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of a bitmap, and whether it has holes. Parts of one or two pixels have no outline."""
        contours, hierarchy = cv2.findContours(
            np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        if hierarchy is None:
            return [], False
        has_holes = bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())  # a contour with a parent bounds a hole
        # OpenCV counts pixels; the middle of the first pixel is at 0.5.
        return [contour.flatten() + 0.5 for contour in contours if len(contour) >= 3], has_holes

    def _merged_rle(self) -> Any:
        return mask_util.merge(mask_util.frPyObjects(self.polygons, self.height, self.width))

    def area(self) -> int:
        """In square pixels."""
        return self.mask.sum()

    def bbox(self) -> np.ndarray:
        """x0, y0, x1, y1 in pixels."""
        box = mask_util.toBbox(self._merged_rle())
        box[2:] += box[:2]
        return box
