"""Features of a region for the box predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvcore.nn import weight_init
from torch import nn

from ...layers import Conv2d, ShapeSpec, get_norm
from ...utils.registry import Registry

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
"""Modules that map the pooled features of regions to what the box predictor takes."""


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions (each with norm and ReLU), then fully connected layers (each with ReLU).

    Takes (M, C, H, W); gives (M, fc_dims[-1]), or (M, conv_dims[-1], H, W) without fully connected layers.
    """

    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: Any = ""
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of the pooled features.
            conv_dims: output channels of each convolution.
            fc_dims: outputs of each fully connected layer.
            conv_norm: as ``layers.get_norm`` takes it; the convolutions have a bias only without one.

        Raises:
            ValueError: no layers at all, or fully connected ones for an input of unknown height and width.
        """
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ValueError("FastRCNNConvFCHead: conv_dims and fc_dims are both empty; there must be some layer.")
        channels: int = input_shape.channels  # type: ignore[assignment]
        height, width = input_shape.height, input_shape.width
        self.conv_norm_relus: list[nn.Module] = []
        self.fcs: list[nn.Module] = []
        for k, dim in enumerate(conv_dims, 1):
            norm = get_norm(conv_norm, dim)
            conv = Conv2d(channels, dim, 3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"conv{k}", conv)
            self.conv_norm_relus.append(conv)
            channels = dim
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            if height is None or width is None:
                raise ValueError(
                    f"FastRCNNConvFCHead: fc_dims need height and width in input_shape, got {input_shape}."
                )
            features = channels * height * width
            for k, dim in enumerate(fc_dims, 1):
                fc = nn.Linear(features, dim)
                self.add_module(f"fc{k}", fc)
                self.add_module(f"fc_relu{k}", nn.ReLU())
                self.fcs.append(fc)
                features = dim
            self._output_shape = ShapeSpec(channels=features)
        else:
            self._output_shape = ShapeSpec(channels=channels, height=height, width=width)
        # Only when all layers are there are the weights drawn: seeded runs depend on the order of draws.
        for layer in self.conv_norm_relus:
            weight_init.c2_msra_fill(layer)
        for layer in self.fcs:
            weight_init.c2_xavier_fill(layer)

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels, and height and width where there are no fully connected layers."""
        return self._output_shape
