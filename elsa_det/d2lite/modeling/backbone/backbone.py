"""What every feature extractor promises to the models built on top of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ...layers import ShapeSpec

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """Base class of feature extractors: an image batch in, a dict of named feature maps out.

    A subclass either overrides :meth:`output_shape` or sets ``_out_features`` (names),
    ``_out_feature_channels`` and ``_out_feature_strides`` (both keyed by name).
    """

    _out_features: list[str] | tuple[str, ...]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to features ``{name: (N, C_name, H / stride, W / stride)}``."""

    @property
    def size_divisibility(self) -> int:
        """Image height and width, in pixels, must be multiples of this; 0 when any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """More about padding, read by ``ImageList.from_tensors``.

        ``"square_size"``: if above 0, images are padded to a square with this side, in pixels;
        ``"size_divisibility"``: if there, takes the place of the property of that name.
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map that :meth:`forward` returns."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in self._out_features}
