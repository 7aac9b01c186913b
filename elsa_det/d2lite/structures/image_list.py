"""A batch of images of different sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class ImageList:
    """Images padded to one size, and the sizes they had.

    Args:
        tensor: (N, ..., H, W), the images in the upper left corners.
        image_sizes: height and width of each image without its padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Image ``idx`` without its padding, (..., h, w)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pad images at their right and lower sides to the size of the largest.

        Args:
            tensors: the images, (..., h, w) each; all but the last two dimensions agree.
            size_divisibility: make the common height and width multiples of this; 0 and 1 do nothing.
            pad_value: what the padding is filled with.
            padding_constraints: ``size_divisibility`` in here goes before the argument of that name; with a positive
                ``square_size`` the images are padded to a square of that side instead of the largest image.

        Raises:
            ValueError: there is no image, their leading dimensions differ, or one is larger than ``square_size``.
            TypeError: ``tensors`` is not a list or tuple of tensors.
        """
        if not isinstance(tensors, (list, tuple)) or not all(isinstance(image, Tensor) for image in tensors):
            raise TypeError(f"ImageList.from_tensors takes a list of tensors, not {type(tensors).__name__}: {tensors}.")
        if len(tensors) == 0:
            raise ValueError("ImageList.from_tensors: there are no images to put together.")
        leading = tensors[0].shape[:-2]
        if any(image.shape[:-2] != leading for image in tensors):
            raise ValueError(
                "ImageList.from_tensors: the images must agree in all dimensions but height and width, but they are "
                + ", ".join(str(tuple(image.shape)) for image in tensors)
            )
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        constraints = padding_constraints or {}
        height, width = (max(lengths) for lengths in zip(*sizes))
        side = constraints.get("square_size", 0)
        if side > 0:
            if side < max(height, width):
                raise ValueError(f"ImageList.from_tensors: square_size={side} cannot hold images of sizes {sizes}.")
            height = width = side
        multiple = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = (-(-length // multiple) * multiple for length in (height, width))

        batch = tensors[0].new_full((len(tensors), *leading, height, width), pad_value)
        for image, room in zip(tensors, batch):
            room[..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch, sizes)
