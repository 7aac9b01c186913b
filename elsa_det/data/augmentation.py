"""Augmentations that Detectron2 lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..d2 import transforms as T


class OneOf(T.Augmentation):
    """Apply one of several lists of augmentations, chosen at random.

    Args:
        choices: lists of augmentations, each applied in its order.
        probabilities: of each list, summing to 1; equal by default.

    Raises:
        ValueError: no choices, or probabilities that do not fit them.
    """

    def __init__(self, choices: Sequence[Sequence[Any]], probabilities: Sequence[float] | None = None) -> None:
        super().__init__()
        if not choices:
            raise ValueError("OneOf needs at least one list of augmentations")
        if probabilities is not None and (len(probabilities) != len(choices) or abs(sum(probabilities) - 1) > 1e-6):
            raise ValueError(f"probabilities {list(probabilities)} must be {len(choices)} numbers that sum to 1")
        self.choices = [T.AugmentationList(list(choice)) for choice in choices]
        self.probabilities = probabilities

    def __call__(self, aug_input: Any) -> Any:
        chosen = np.random.choice(len(self.choices), p=self.probabilities)
        return self.choices[chosen](aug_input)


class TransposeTransform(T.Transform):
    """Swap rows and columns of images, label maps, coordinates and boxes."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.swapaxes(img, 0, 1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords[:, ::-1]

    def inverse(self) -> TransposeTransform:
        return self


class RandomTranspose(T.Augmentation):
    """Swap rows and columns with probability ``prob``; with both flips, all eight symmetries of the square."""

    def __init__(self, prob: float = 0.5) -> None:
        super().__init__()
        self.prob = prob

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return TransposeTransform() if np.random.uniform() < self.prob else T.NoOpTransform()
