"""The augmentations: random flips, sizes, crops, rotations and colours.

Each draws its random numbers from numpy's global generator, always in the same number and order, so that a seed
decides on all of them. Sizes are (height, width) throughout.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from ...structures import Boxes, pairwise_iou
from .augmentation import Augmentation, _transform_to_aug
from .transform import _BILINEAR, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """``value``, if it is allowed.

    Raises:
        ValueError: otherwise; it names the argument and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known: use one of {', '.join(map(repr, allowed))}.")
    return value


class RandomApply(Augmentation):
    """Apply an augmentation with a probability.

    Args:
        tfm_or_aug: the augmentation, or a transform.
        prob: in [0, 1].
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"RandomApply(prob=…) is a probability in [0, 1], got {prob}.")
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        # Not through get_transform: the inner augmentation knows itself what it has to look at.
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip the image with a probability, horizontally or vertically. For both, use two of them.

    Args:
        prob: in [0, 1].
        horizontal, vertical: exactly one is True.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if bool(horizontal) == bool(vertical):
            raise ValueError(
                f"RandomFlip needs exactly one of horizontal={horizontal} and vertical={vertical}; "
                "for both directions use two RandomFlip."
            )
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class _Resizing(Augmentation):
    """What resizes; a subclass says to which size."""

    interp: int

    def _new_size(self, h: int, w: int) -> Sequence[int] | None:
        """The (height, width) that an image of this size gets, or None to leave it alone."""
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        new_size = self._new_size(h, w)
        if new_size is None:
            return NoOpTransform()
        new_h, new_w = new_size
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class Resize(_Resizing):
    """Resize to a fixed size, whatever the aspect ratio.

    Args:
        shape: (h, w), or one number for both.
        interp: PIL interpolation.
    """

    def __init__(self, shape: int | Sequence[int], interp: int = _BILINEAR) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def _new_size(self, h: int, w: int) -> Sequence[int]:
        return self.shape


class RandomResize(_Resizing):
    """Resize to one of several sizes.

    Args:
        shape_list: the (h, w) to choose from.
        interp: PIL interpolation.
    """

    def __init__(self, shape_list: Sequence[Sequence[int]], interp: int = _BILINEAR) -> None:
        self.shape_list = shape_list
        self.interp = interp

    def _new_size(self, h: int, w: int) -> Sequence[int]:
        return self.shape_list[np.random.randint(len(self.shape_list))]


class ResizeShortestEdge(_Resizing):
    """Resize so that the shorter edge gets a random length, but the longer one at most ``max_size``.

    Args:
        short_edge_length: a range [min, max] (both inclusive), or the lengths to choose from, in pixels; or one
            length. The length 0 leaves the image as it is.
        max_size: the longer edge at most; the shorter one is then shorter than asked for.
        sample_style: "range" or "choice", the meaning of ``short_edge_length``.
        interp: PIL interpolation.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = _BILINEAR,
    ) -> None:
        self.sample_style = _one_of("ResizeShortestEdge: sample_style", sample_style, ("range", "choice"))
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if len(short_edge_length) == 0 or (self.is_range and len(short_edge_length) != 2):
            raise ValueError(
                f"ResizeShortestEdge(short_edge_length={short_edge_length}) must be [min, max] with "
                "sample_style='range'; for a list of lengths use sample_style='choice'."
            )
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.interp = interp

    def _draw_length(self) -> int:
        if not self.is_range:
            return np.random.choice(self.short_edge_length)
        shortest, longest = self.short_edge_length
        return np.random.randint(shortest, longest + 1)

    def _new_size(self, h: int, w: int) -> Sequence[int] | None:
        length = self._draw_length()
        return self.get_output_shape(h, w, length, self.max_size) if length else None

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The (height, width) that an image of this size gets."""
        short = float(short_edge_length)
        long = short / min(oldh, oldw) * max(oldh, oldw)
        if max(short, long) > max_size:
            shrink = max_size / max(short, long)
            short, long = short * shrink, long * shrink
        short, long = int(short + 0.5), int(long + 0.5)
        return (short, long) if oldh < oldw else (long, short)


class ResizeScale(_Resizing):
    """Fit the image, its aspect ratio kept, into a target box that is scaled by a random factor first.

    With :class:`FixedSizeCrop` after it, this is large-scale jittering.

    Args:
        min_scale, max_scale: range of the factor.
        target_height, target_width: the box at the factor 1.
        interp: PIL interpolation.
    """

    def __init__(
        self, min_scale: float, max_scale: float, target_height: int, target_width: int, interp: int = _BILINEAR
    ) -> None:
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_height, self.target_width = target_height, target_width
        self.interp = interp

    def _new_size(self, h: int, w: int) -> Sequence[int]:
        factor = np.random.uniform(self.min_scale, self.max_scale)
        size = np.array((h, w))
        box = np.multiply((self.target_height, self.target_width), factor)
        return np.round(size * (box / size).min()).astype(int).tolist()


class FixedSizeCrop(Augmentation):
    """Cut out a window of a fixed size at a random place; pad at the right and bottom where the image is smaller.

    Args:
        crop_size: (h, w).
        pad: without it, smaller images stay smaller.
        pad_value: of the image.
        seg_pad_value: of the label map.
    """

    def __init__(
        self, crop_size: Sequence[int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        size = np.array(image.shape[:2])
        wanted = np.array(tuple(self.crop_size))
        # One random number places the window in both directions: it lies on the diagonal of the possible places.
        y0, x0 = np.round(np.maximum(size - wanted, 0) * np.random.uniform(0.0, 1.0)).astype(int)
        transforms = [CropTransform(x0, y0, wanted[1], wanted[0], size[1], size[0])]
        if self.pad:
            below, right = np.maximum(wanted - size, 0)
            kept_h, kept_w = np.minimum(size, wanted)
            transforms.append(PadTransform(0, 0, right, below, kept_w, kept_h, self.pad_value, self.seg_pad_value))
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Cut out a window of random place and, with the two ``…_range`` types, random size.

    Args:
        crop_type: how ``crop_size`` is meant for an image of size (H, W):

            * "relative": (h, w) in (0, 1], the window is (h·H, w·W);
            * "relative_range": (h, w) in (0, 1], the lower limits of such factors, each drawn up to 1;
            * "absolute": (h, w) in pixels, at most the image;
            * "absolute_range": (min, max) in pixels, between which height and width are drawn, each at most the
                image's.
        crop_size: two numbers.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        types = ("relative_range", "relative", "absolute", "absolute_range")
        self.crop_type = _one_of("RandomCrop: crop_type", crop_type, types)
        if len(crop_size) != 2 or (crop_type == "absolute_range" and crop_size[0] > crop_size[1]):
            raise ValueError(
                f"RandomCrop(crop_type={crop_type!r}, crop_size={crop_size}) needs two numbers, "
                "with 'absolute_range' the smaller one first."
            )
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._crop_at_random_place(*image.shape[:2])

    def _crop_at_random_place(self, h: int, w: int) -> CropTransform:
        crop_h, crop_w = self.get_crop_size((h, w))
        if crop_h > h or crop_w > w:
            raise ValueError(
                f"RandomCrop({self.crop_type!r}, {self.crop_size}) asks for a window of {(crop_h, crop_w)} from an "
                f"image of {(h, w)}. Relative sizes are in (0, 1]."
            )
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The (h, w) in pixels of a window in an image of this (h, w); the range types draw random numbers."""
        h, w = image_size
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return int(min(first, h)), int(min(second, w))
        if self.crop_type == "absolute_range":
            low, high = int(first), int(second)
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            crop_w = np.random.randint(min(w, low), min(w, high) + 1)
            return crop_h, crop_w
        if self.crop_type == "relative_range":
            smallest = np.asarray((first, second), dtype=np.float32)  # in double precision, windows can differ
            first, second = smallest + np.random.rand(2) * (1 - smallest)
        return int(h * first + 0.5), int(w * second + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """Like :class:`RandomCrop`, but look for a window that no single class fills too much; at most ten tries.

    Args:
        crop_type, crop_size: see :class:`RandomCrop`.
        single_category_max_area: the share in (0, 1] that a class may have of the window; 1 switches the search off.
        ignored_category: a label that does not count, usually the one ignored in training.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type, self.crop_size = crop_type, crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        if sem_seg is None:
            raise ValueError(
                "RandomCrop_CategoryAreaConstraint with single_category_max_area < 1 needs a label map (sem_seg), and "
                "this input has none. Use RandomCrop for datasets without one."
            )
        for _ in range(10):
            crop = self.crop_aug._crop_at_random_place(*sem_seg.shape)
            if self._is_mixed_enough(crop.apply_segmentation(sem_seg)):
                break
        return crop

    def _is_mixed_enough(self, window: np.ndarray) -> bool:
        labels, counts = np.unique(window, return_counts=True)
        if self.ignored_category is not None:
            counts = counts[labels != self.ignored_category]
        return len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area


class RandomRotation(Augmentation):
    """Rotate counter-clockwise.

    Args:
        angle: [min, max] in degrees, or angles to choose from, or one angle.
        expand: enlarge the image so that nothing is lost.
        center: [[min x, min y], [max x, max y]] or points to choose from, or one point, relative to the image: (0, 0)
            top left, (1, 1) bottom right. None: the middle. Without effect if ``expand``.
        sample_style: "range" or "choice", the meaning of ``angle`` and ``center``.
        interp: OpenCV interpolation.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        self.sample_style = _one_of("RandomRotation: sample_style", sample_style, ("range", "choice"))
        self.is_range = sample_style == "range"
        self.angle: Sequence[float] = (angle, angle) if isinstance(angle, (float, int)) else angle
        single_point = center is not None and isinstance(center[0], (float, int))
        self.center: Any = (center, center) if single_point else center
        self.expand = expand
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        angle = np.random.uniform(self.angle[0], self.angle[1]) if self.is_range else np.random.choice(self.angle)
        center = None if self.center is None else self._draw_center() * (w, h)
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)

    def _draw_center(self) -> np.ndarray:
        """Relative x and y."""
        if self.is_range:
            lowest, highest = self.center
            return np.array([np.random.uniform(low, high) for low, high in zip(lowest, highest)])
        return np.array(self.center[np.random.choice(len(self.center))])


class _RandomIntensity(Augmentation):
    """Blend the image with a duller one; the weight of the image is uniform in [intensity_min, intensity_max).

    Args:
        intensity_min, intensity_max: 1 keeps the image, less is duller, more is the opposite.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def _dull(self, image: np.ndarray) -> Any:
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._dull(image), src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomIntensity):
    __doc__ = f"Change the contrast: blend with the mean of the image.\n\n{_RandomIntensity.__doc__}"

    def _dull(self, image: np.ndarray) -> Any:
        return image.mean()


class RandomBrightness(_RandomIntensity):
    __doc__ = f"Change the brightness: blend with black.\n\n{_RandomIntensity.__doc__}"

    def _dull(self, image: np.ndarray) -> Any:
        return 0


def _needs_three_channels(aug: Augmentation, image: np.ndarray) -> None:
    if image.shape[-1] != 3:
        raise ValueError(f"{type(aug).__name__} works on RGB images of shape (H, W, 3) only, got {image.shape}.")


class RandomSaturation(_RandomIntensity):
    __doc__ = f"Change the saturation of an RGB image: blend with its grey version.\n\n{_RandomIntensity.__doc__}"

    def _dull(self, image: np.ndarray) -> Any:
        return image.dot([0.299, 0.587, 0.114])[:, :, None]  # luma of ITU-R BT.601

    def get_transform(self, image: np.ndarray) -> Transform:
        _needs_three_channels(self, image)
        return super().get_transform(image)


class RandomLighting(Augmentation):
    """Shift the colour of an RGB image along the principal components of ImageNet's colours (AlexNet, section 4.1).

    Args:
        scale: standard deviation of the shifts.
    """

    eigen_vals = np.array([0.2175, 0.0188, 0.0045])
    eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        _needs_three_channels(self, image)
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)


class MinIoURandomCrop(Augmentation):
    """Crop so that all boxes overlap the window by at least an IoU that is drawn at random, as in SSD.

    Args:
        min_ious: the IoUs to choose from; besides them, "do not crop" and "no demand" can be drawn.
        min_crop_size: smallest side of the window relative to the image.
        mode_trials: draws of an IoU.
        crop_trials: windows tried for each of them.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self.min_ious, self.min_crop_size = min_ious, min_crop_size
        self.sample_mode = (1, *min_ious, 0)
        self.mode_trials, self.crop_trials = mode_trials, crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        if boxes is None:
            return NoOpTransform()
        boxes = boxes.reshape(-1, 4)
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(self.sample_mode)
            if min_iou == 1:
                break
            for _ in range(self.crop_trials):
                crop = self._try_a_crop(image, boxes, min_iou)
                if crop is not None:
                    return crop
        return NoOpTransform()

    def _try_a_crop(self, image: np.ndarray, boxes: np.ndarray, min_iou: float) -> CropTransform | None:
        """A random window, or None if it is too oblong, empty, or does not satisfy the demand."""
        h, w = image.shape[:2]
        new_w = np.random.uniform(self.min_crop_size * w, w)
        new_h = np.random.uniform(self.min_crop_size * h, h)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        # uniform(a) draws between a and 1 (the other limit's default), not between 0 and a; recipes depend on it.
        left = np.random.uniform(w - new_w)
        top = np.random.uniform(h - new_h)
        x0, y0, x1, y1 = window = np.array((int(left), int(top), int(left + new_w), int(top + new_h)))
        if x0 == x1 or y0 == y1:
            return None
        if len(boxes) > 0:
            overlaps = pairwise_iou(Boxes(window[None]), Boxes(boxes))
            if overlaps.min() < min_iou:
                return None
            center_x, center_y = (boxes[:, :2] + boxes[:, 2:]).T / 2
            if not ((x0 < center_x) & (center_x < x1) & (y0 < center_y) & (center_y < y1)).any():
                return None
        return CropTransform(int(left), int(top), int(new_w), int(new_h))
