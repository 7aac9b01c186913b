"""Deterministic transforms beyond fvcore's: resizing, extents, rotation, colour.

Coordinates are continuous, not pixel indices: an image of height H and width W spans [0, W] × [0, H].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform", "RotationTransform"]

_BILINEAR = int(Image.Resampling.BILINEAR)  # a plain number, so that it prints as one
_TORCH_MODE = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _through_pil(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a PIL operation to an array; PIL knows single-channel images without a channel axis only."""
    if img.ndim == 3 and img.shape[2] == 1:
        return np.asarray(operation(Image.fromarray(img[:, :, 0])))[:, :, None]
    return np.asarray(operation(Image.fromarray(img)))


class ExtentTransform(Transform):
    """Cut a rectangle out of the image, which may reach beyond it, and scale it.

    Args:
        src_rect: (x0, y0, x1, y1) in the source image.
        output_size: (h, w) of the result.
        interp: PIL interpolation.
        fill: PIL's ``fill``; what lies outside the source is black.
    """

    def __init__(
        self,
        src_rect: Sequence[float],
        output_size: tuple[int, int],
        interp: int = _BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self.src_rect = src_rect
        self.output_size = output_size
        self.interp = interp
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        h, w = self.output_size
        resample = interp or self.interp

        def extent(image: Image.Image) -> Image.Image:
            return image.transform((w, h), Image.Transform.EXTENT, self.src_rect, resample, self.fill)

        return _through_pil(img, extent)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        h, w = self.output_size
        x0, y0, x1, y1 = self.src_rect
        out = coords.astype(np.float32)
        # About the centre of the rectangle, and in steps of float32: this is how the published recipes round.
        for axis, low, high, size in ((0, x0, x1, w), (1, y0, y1, h)):
            out[:, axis] -= 0.5 * (low + high)
            out[:, axis] *= size / (high - low)
            out[:, axis] += 0.5 * size
        return out

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        # NEAREST is PIL's 0, which apply_image takes for "not given"; the bilinear result is what upstream's users get
        # too.
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


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
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
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
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.angle = angle
        self.expand = expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else center
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = w, h
        if expand:
            cos, sin = np.abs(np.cos(np.deg2rad(angle))), np.abs(np.sin(np.deg2rad(angle)))
            self.bound_w, self.bound_h = np.rint([h * sin + w * cos, h * cos + w * sin]).astype(int)
        self.rm_coords = self.create_rotation_matrix()
        # OpenCV takes pixel indices, whose centres lie half a pixel off our coordinates.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """The (2, 3) affine matrix for coordinates shifted by ``offset``."""
        matrix = cv2.getRotationMatrix2D((self.center[0] + offset, self.center[1] + offset), self.angle, 1)
        if self.expand:  # bring the centre of the image to the centre of the larger one
            moved = cv2.transform(self.image_center[None, None] + offset, matrix)[0, 0]
            matrix[:, 2] += np.array([self.bound_w / 2, self.bound_h / 2]) + offset - moved
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
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self._does_nothing:
            return coords
        return cv2.transform(coords[:, None, :], self.rm_coords)[:, 0, :]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> TransformList:
        """Rotate back, and crop to the size before.

        Raises:
            NotImplementedError: without ``expand``, since parts of the image are lost.
        """
        if not self.expand:
            raise NotImplementedError("A rotation without expand=True loses the corners and cannot be undone.")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h)])


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
        return np.asarray(self.op(Image.fromarray(img)))
