"""The augmentation of the segmentation recipes, as far as Detectron2 lacks it.

The crop with the 75 % rule is Detectron2's ``RandomCrop_CategoryAreaConstraint``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ...d2 import transforms as T
from ...errors import UserError
from .labels import IGNORE_LABEL


class LabelResize(T.ResizeTransform):
    """Detectron2's resize, but label maps of more than 8 bits are sampled at the same places as those of 8 bits."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        if segmentation.dtype == np.uint8:
            return super().apply_segmentation(segmentation)
        resized = Image.fromarray(segmentation.astype(np.int32)).resize(
            (self.new_w, self.new_h), Image.Resampling.NEAREST
        )
        return np.asarray(resized).astype(segmentation.dtype)


class RandomResizeInto(T.Augmentation):
    """Resize into a frame, the aspect ratio kept, that is scaled by a random factor first.

    Args:
        short, long: Of the frame, in pixels: the image's shorter side becomes at most ``short``, its longer side at
            most ``long``, and one of the two exactly, times the factor.
        ratio: The factor is uniform in [ratio[0], ratio[1]].

    Raises:
        UserError: The sizes or the range make no sense.
    """

    def __init__(self, short: int, long: int, ratio: Sequence[float] = (0.5, 2.0)) -> None:
        super().__init__()
        if not 0 < short <= long:
            raise UserError(f"image sizes must satisfy 0 < short <= long, got short={short}, long={long}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise UserError(f"ratio is a range [least, most] of positive factors, got {list(ratio)}")
        self.short, self.long = short, long
        self.ratio = (float(ratio[0]), float(ratio[1]))

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factor = np.random.uniform(*self.ratio)
        height, width = image.shape[:2]
        new_h, new_w = size_into(height, width, int(self.short * factor), int(self.long * factor))
        return LabelResize(height, width, new_h, new_w)


def size_into(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """The (height, width) of an image resized into a frame, its aspect ratio kept: one side touches the frame."""
    factor = min(short / min(height, width), long / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class PadToSize(T.Augmentation):
    """Pad at the right and at the bottom up to a size; larger images stay as they are.

    Args:
        size: (height, width) in pixels.
        pixel: Per channel, the value of the new pixels, rounded for 8-bit images. The mean of the model's
            normalisation makes them 0 there, which is what the published recipe pads with.
        label: The label of the new pixels: the ignored one.
    """

    def __init__(
        self, size: Sequence[int], pixel: Sequence[float] = (0.0, 0.0, 0.0), label: int = IGNORE_LABEL
    ) -> None:
        super().__init__()
        self.size, self.pixel, self.label = tuple(size), tuple(pixel), label

    def get_transform(self, image: np.ndarray) -> T.Transform:
        below, right = (max(0, wanted - there) for wanted, there in zip(self.size, image.shape[:2]))
        return PadRightBottom(below, right, self.pixel, self.label) if below or right else T.NoOpTransform()


class PadRightBottom(T.Transform):
    """Add ``below`` rows and ``right`` columns, with a value per channel for images and ``label`` for label maps."""

    def __init__(self, below: int, right: int, pixel: Sequence[float], label: int) -> None:
        super().__init__()
        self.below, self.right, self.pixel, self.label = below, right, pixel, label

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        value = np.asarray(self.pixel)
        if img.ndim == 3 and img.shape[2] != len(value):
            raise ValueError(f"the image has {img.shape[2]} channels, the padding {len(value)} values")
        value = value if img.ndim == 3 else value.mean()
        if np.issubdtype(img.dtype, np.integer):
            value = np.rint(value)
        height, width = img.shape[:2]
        padded = np.empty((height + self.below, width + self.right, *img.shape[2:]), dtype=img.dtype)
        padded[...] = value
        padded[:height, :width] = img
        return padded

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return np.pad(segmentation, ((0, self.below), (0, self.right)), constant_values=self.label)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def inverse(self) -> T.Transform:
        raise NotImplementedError("the size before the padding is not kept")


class PhotometricDistortion(T.Augmentation):
    """Change brightness, contrast, saturation and hue at random, each with probability one half.

    Contrast comes right after brightness or at the end, with equal chance. Colours are 8-bit and are rounded and
    clipped after each step, as the published recipe does.

    Args:
        brightness: Added to all channels: uniform in [-brightness, brightness].
        contrast: Range of the factor of all channels.
        saturation: Range of the factor of the saturation.
        hue: Largest turn of the hue, in OpenCV's units of 2°: whole numbers in [-hue, hue - 1].
        image_format: Order of the image's channels, "RGB" or "BGR".

    Raises:
        UserError: A range makes no sense.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: int = 18,
        image_format: str = "RGB",
    ) -> None:
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format={image_format!r} is not known here: use 'RGB' or 'BGR'")
        for name, bounds in (("contrast", contrast), ("saturation", saturation)):
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise UserError(f"{name} is a range [least, most] of factors, got {list(bounds)}")
        if brightness < 0 or not 0 <= hue <= 90:
            raise UserError(f"brightness={brightness} must not be negative, hue={hue} must be in 0..90")
        self.brightness, self.hue, self.image_format = brightness, hue, image_format
        self.contrast = (float(contrast[0]), float(contrast[1]))
        self.saturation = (float(saturation[0]), float(saturation[1]))

    def get_transform(self, image: np.ndarray) -> T.Transform:
        def chance() -> bool:
            return bool(np.random.randint(2))

        offset = np.random.uniform(-self.brightness, self.brightness) if chance() else None
        contrast = np.random.uniform(*self.contrast) if chance() else None
        contrast_first = chance()
        saturation = np.random.uniform(*self.saturation) if chance() else None
        turn = int(np.random.randint(-self.hue, max(self.hue, 1 - self.hue))) if chance() else None
        return PhotometricTransform(
            offset=offset,
            contrast=contrast,
            contrast_first=contrast_first,
            saturation=saturation,
            hue=turn,
            image_format=self.image_format,
        )


class PhotometricTransform(T.Transform):
    """What :class:`PhotometricDistortion` decides on; ``None`` leaves a step out. Places stay."""

    def __init__(
        self,
        *,
        offset: float | None = None,
        contrast: float | None = None,
        contrast_first: bool = True,
        saturation: float | None = None,
        hue: int | None = None,
        image_format: str = "RGB",
    ) -> None:
        super().__init__()
        self.offset, self.contrast, self.contrast_first = offset, contrast, contrast_first
        self.saturation, self.hue = saturation, hue
        self.image_format = image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"photometric distortion needs (H, W, 3) uint8, got {img.shape} {img.dtype}")
        if self.offset is not None:
            img = _scaled(img, 1.0, self.offset)
        if self.contrast is not None and self.contrast_first:
            img = _scaled(img, self.contrast)
        if self.saturation is not None or self.hue is not None:
            img = self._recoloured(img)
        if self.contrast is not None and not self.contrast_first:
            img = _scaled(img, self.contrast)
        return img

    def _recoloured(self, img: np.ndarray) -> np.ndarray:
        there, back = (getattr(cv2, name.format(self.image_format)) for name in ("COLOR_{}2HSV", "COLOR_HSV2{}"))
        hsv = cv2.cvtColor(np.ascontiguousarray(img), there)
        if self.saturation is not None:
            hsv[:, :, 1] = _scaled(hsv[:, :, 1], self.saturation)
            if self.hue is not None:  # 8-bit colours in between, as published
                hsv = cv2.cvtColor(cv2.cvtColor(hsv, back), there)
        if self.hue is not None:
            hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + self.hue) % 180
        return cv2.cvtColor(hsv, back)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def inverse(self) -> Any:
        return T.NoOpTransform()


def _scaled(values: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """``values · factor + offset``, clipped to 0..255 and cut off to whole numbers."""
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)
