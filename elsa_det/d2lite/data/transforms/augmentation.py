"""What an augmentation is: a policy, mostly random, that looks at the input and decides on a transform.

The transform is then applied to everything that belongs to the image: boxes, masks, label maps.
"""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


class Augmentation:
    """Base of all augmentations: a subclass implements :meth:`get_transform`.

    The parameters of ``get_transform`` name the attributes of the input it looks at: "image", "boxes", "sem_seg" or
    what else the input has. A single parameter always gets the image, whatever its name. Random numbers come from
    numpy's global generator.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keep the arguments of a constructor as attributes: ``self._init(locals())``."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Decide on a transform for this input.

        The conventions are: image, (H, W) or (H, W, C), uint8 in [0, 255] or floating point; boxes, (N, 4) float32,
        XYXY in pixels; sem_seg, (H, W) of integer labels.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement get_transform.")

    def _names_of_inputs(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.get_transform).parameters.values()
        if len(parameters) == 1:
            return ("image",)
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(
                f"{type(self).__name__}.get_transform takes *args or **kwargs, so what it needs cannot be told from "
                "its signature. Name its parameters, set input_args, or implement __call__."
            )
        return tuple(p.name for p in parameters)

    def __call__(self, aug_input: Any) -> Transform:
        """Change ``aug_input`` in place; gives the transform that did it.

        Raises:
            AttributeError: if the input lacks something the augmentation looks at.
            TypeError: if :meth:`get_transform` does not give a transform.
        """
        if self.input_args is None:
            self.input_args = self._names_of_inputs()
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self).__name__}.get_transform needs '{missing[0]}', "
                f"which {type(aug_input).__name__} does not have."
            )
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        if not isinstance(transform, Transform):
            raise TypeError(
                f"{type(self).__name__}.get_transform must give a Transform, got {type(transform).__name__}."
            )
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform in [low, high), or in [0, low) if ``high`` is not given."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        parameters = inspect.signature(self.__init__).parameters  # type: ignore[misc]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or not hasattr(self, n) for n, p in parameters.items()):
            return object.__repr__(self)
        shown = {
            n: pprint.pformat(getattr(self, n)) for n, p in parameters.items() if getattr(self, n) is not p.default
        }
        texts = [f"{name}={text if text.isprintable() else '...'}" for name, text in shown.items()]
        return f"{type(self).__name__}({', '.join(texts)})"

    __str__ = __repr__


TransformGen = Augmentation


class _AlwaysThis(Augmentation):
    """A transform in the place of an augmentation."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    """An augmentation as it is, a transform wrapped into one."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, Transform):
        return _AlwaysThis(tfm_or_aug)
    raise TypeError(f"An Augmentation or a Transform is needed here, got {tfm_or_aug!r}.")


class AugmentationList(Augmentation):
    """Augmentations one after the other, each of which sees what those before it made.

    Args:
        augs: augmentations or transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """What augmentations look at and change. Any object with such attributes and a ``transform`` method will do as
    well.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point in [0, 1] or [0, 255].
        boxes: (N, 4) float32, XYXY in pixels.
        sem_seg: (H, W) of integer labels.

    Raises:
        TypeError: if the image is no array.
        ValueError: if it has other than 2 or 3 dimensions.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        if not isinstance(image, np.ndarray):
            raise TypeError(f"AugInput needs the image as a numpy array, got {type(image).__name__}.")
        if image.ndim not in (2, 3):
            raise ValueError(f"AugInput needs an image of shape (H, W) or (H, W, C), got {image.shape}.")
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to all that is there, in place."""
        parts = {"image": tfm.apply_image, "boxes": tfm.apply_box, "sem_seg": tfm.apply_segmentation}
        for name, apply in parts.items():
            if (value := getattr(self, name)) is not None:
                setattr(self, name, apply(value))

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Run ``AugmentationList(augmentations)`` on this input."""
        return AugmentationList(augmentations)(self)


StandardAugInput = AugInput


def apply_augmentations(augmentations: Sequence[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Run augmentations on an :class:`AugInput`, or on a bare image; gives what they made of it, and the transforms."""
    if isinstance(inputs, np.ndarray):
        image_input = AugInput(inputs)
        transforms = image_input.apply_augmentations(augmentations)
        return image_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


apply_transform_gens = apply_augmentations
