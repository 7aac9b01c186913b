"""Deterministic transforms beyond fvcore's: resizing, rotation, colour.

Coordinates are continuous, not pixel indices: an image of height H and width W spans [0, W] × [0, H].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ColorTransform", "PILColorTransform", "ResizeTransform", "RotationTransform"]

_BILINEAR = int(Image.Resampling.BILINEAR)  # a plain number, so that it prints as one
_TORCH_MODE = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _through_pil(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a PIL operation to an array; PIL knows single-channel images without a channel axis only."""
    if img.ndim == 3 and img.shape[2] == 1:
        return np.array(operation(Image.fromarray(img[:, :, 0])))[:, :, None]
    return np.array(operation(Image.fromarray(img)))


class ResizeTransform(Transform):
    """Resize to (new_h, new_w): uint8 through PIL (antialiased), anything else through torch (not antialiased).

    Args:
        h, w: size of the image before.
        new_h, new_w: size after.
        interp: PIL interpolation, bilinear if None.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = _BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image of shape (H, W), (H, W, C) or, if it is not uint8, (H, W, 1, C).

        Raises:
            ValueError: if the image has another size than the transform was made for.
        """
        if img.shape[:2] != (self.h, self.w) or img.ndim > 4:
            raise ValueError(
                f"This ResizeTransform is made for images of height and width {(self.h, self.w)}, "
                f"got an array of the shape {img.shape}."
            )
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _through_pil(img, lambda image: image.resize((self.new_w, self.new_h), interp))
        return self._through_torch(img, _TORCH_MODE[Image.Resampling(interp)])

    def _through_torch(self, img: np.ndarray, mode: str) -> np.ndarray:
        channels = img.shape[2:]
        # A contiguous copy: torch knows no negative strides, which flips leave behind.
        x = torch.from_numpy(np.ascontiguousarray(img))
        labels = (
            mode == "nearest" and not x.is_floating_point()
        )  # torch resizes no integers; float64 keeps them exactly
        planes = (x.double() if labels else x).reshape(self.h, self.w, -1).permute(2, 0, 1)[None]
        align = None if mode == "nearest" else False
        planes = F.interpolate(planes, (self.new_h, self.new_w), mode=mode, align_corners=align)
        return planes[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *channels).to(x.dtype).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        for axis, ratio in enumerate((self.new_w / self.w, self.new_h / self.h)):
            coords[:, axis] = coords[:, axis] * ratio  # in steps of their own precision
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> ResizeTransform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate counter-clockwise by ``angle`` degrees.

    Args:
        h, w: size of the image.
        angle: in degrees.
        expand: make the image as large as the rotated one needs; otherwise its size stays and corners are lost.
        center: (x, y) to rotate about, the middle of the image if None. Without effect if ``expand``.
        interp: OpenCV interpolation, linear if None.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: Sequence[float] | np.ndarray | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        size = np.array((w, h))
        self.center = np.array(size / 2 if center is None else center)
        if expand:
            turn = np.deg2rad(angle)
            size = np.rint(np.abs(np.cos(turn)) * size + np.abs(np.sin(turn)) * size[::-1]).astype(int)
        self.bound_w, self.bound_h = size.tolist()
        # OpenCV takes pixel indices, whose centres lie half a pixel off our coordinates.
        self.rm_coords, self.rm_image = (self._matrix(offset) for offset in (0.0, -0.5))

    def _matrix(self, offset: float) -> np.ndarray:
        """The (2, 3) affine matrix for coordinates shifted by ``offset``."""
        matrix: Any = cv2.getRotationMatrix2D((self.center + offset).tolist(), self.angle, 1.0)
        if not self.expand:
            return matrix
        # The middle of the image comes to the middle of the larger one.
        before, after = (np.array(size) / 2 + offset for size in ((self.w, self.h), (self.bound_w, self.bound_h)))
        matrix[:, 2] += after - cv2.transform(before.reshape(1, 1, 2), matrix).reshape(2)
        return matrix

    @property
    def _does_nothing(self) -> bool:
        return self.angle % 360 == 0

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if len(img) == 0 or self._does_nothing:
            return img
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"This RotationTransform is made for images of height and width {(self.h, self.w)}, "
                f"got an array of the shape {img.shape}."
            )
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (int(self.bound_w), int(self.bound_h)), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        points = np.asarray(coords, dtype=float).reshape(-1, 1, 2)
        turned = points if self._does_nothing or not len(points) else cv2.transform(points, self.rm_coords)
        return turned[:, 0]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> TransformList:
        """Rotate back, and crop to the size before.

        Raises:
            NotImplementedError: without ``expand``, since parts of the image are lost.
        """
        if not self.expand:
            raise NotImplementedError("A rotation without expand=True loses the corners and cannot be undone.")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, interp=self.interp)
        margins = ((large - small) // 2 for large, small in ((back.bound_w, self.w), (back.bound_h, self.h)))
        return TransformList([back, CropTransform(*margins, self.w, self.h)])


class ColorTransform(Transform):
    """Change colours by a function of arrays; places stay.

    Args:
        op: takes and gives an ndarray.
    """

    def __init__(self, op: Callable) -> None:
        if not callable(op):
            raise ValueError(f"{type(self).__name__}(op) must be callable, got {op!r}.")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """Change colours by a function of PIL images.

    Args:
        op: takes and gives a ``PIL.Image``.
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.array(self.op(Image.fromarray(img)))
