"""Features of a region for the box predictor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from fvcore.nn import weight_init
from torch import nn

from ...layers import Conv2d, ShapeSpec, get_norm
from ...utils.registry import Registry

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
"""Modules that map the pooled features of regions to what the box predictor takes."""


def add_convs(head: nn.Module, prefix: str, channels: int, dims: Iterable[int], norm: Any) -> list[nn.Module]:
    """Append 3x3 convolutions, each with norm and ReLU, as ``<prefix>1``, ``<prefix>2`` ...; not initialized yet.

    Args:
        head: what they become submodules of.
        prefix: of their names.
        channels: input channels of the first.
        dims: output channels of each.
        norm: as ``layers.get_norm`` takes it; there is a bias only without one.
    """
    convs: list[nn.Module] = []
    for dim in dims:
        options = {"norm": get_norm(norm, dim), "activation": nn.ReLU()}
        convs.append(Conv2d(channels, dim, 3, padding=1, bias=not norm, **options))
        head.add_module(f"{prefix}{len(convs)}", convs[-1])
        channels = dim
    return convs


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
        height, width = input_shape.height, input_shape.width
        if fc_dims and (height is None or width is None):
            raise ValueError(f"FastRCNNConvFCHead: fc_dims need height and width in input_shape, got {input_shape}.")
        self.conv_norm_relus = add_convs(self, "conv", input_shape.channels, conv_dims, conv_norm)  # type: ignore[arg-type]
        self._output_shape = ShapeSpec(channels=[input_shape.channels, *conv_dims][-1], height=height, width=width)
        self.fcs: list[nn.Module] = []
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            inputs = self._output_shape.channels * height * width  # type: ignore[operator]
            for k, (size, dim) in enumerate(pairwise((inputs, *fc_dims)), 1):
                self.fcs.append(nn.Linear(size, dim))
                self.add_module(f"fc{k}", self.fcs[-1])
                self.add_module(f"fc_relu{k}", nn.ReLU())
            self._output_shape = ShapeSpec(channels=fc_dims[-1])
        # Only when all layers are there are the weights drawn: seeded runs depend on the order of draws.
        fills = [(conv, weight_init.c2_msra_fill) for conv in self.conv_norm_relus]
        fills += [(fc, weight_init.c2_xavier_fill) for fc in self.fcs]
        for layer, fill in fills:
            fill(layer)

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels, and height and width where there are no fully connected layers."""
        return self._output_shape
