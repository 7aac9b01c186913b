"""Feature Pyramid Network (Lin et al., CVPR 2017) and the blocks that add levels on top of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...layers import Conv2d, get_norm
from .backbone import Backbone

__all__ = ["FPN", "LastLevelMaxPool", "LastLevelP6P7"]


class FPN(Backbone):
    """Gives every level of a backbone the semantics of the levels above it.

    Outputs are called ``p<k>`` for stride ``2**k``, the layers ``fpn_lateral<k>`` (1x1) and ``fpn_output<k>`` (3x3).
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: Any = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            bottom_up: the backbone that the pyramid stands on.
            in_features: names of its outputs to use, from high to low resolution; each stride is twice the previous.
            out_channels: channels of every pyramid level.
            norm: normalization after each convolution, as ``layers.get_norm`` takes it; the convolutions have a bias
                only without one.
            top_block: makes further levels. Has ``num_levels`` (how many) and ``in_feature`` (its input: an output of
                ``bottom_up`` or a level of this pyramid).
            fuse_type: "sum" or "avg", how lateral and upsampled features are joined.
            square_pad: if above 0, images are to be padded to a square with this side, in pixels.

        Raises:
            TypeError: ``bottom_up`` is not a Backbone.
            ValueError: no or unknown ``in_features``, strides that do not double, or an unknown ``fuse_type``.
        """
        super().__init__()
        if not isinstance(bottom_up, Backbone):
            raise TypeError(f"FPN: bottom_up must be a Backbone, got {type(bottom_up).__name__}.")
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"FPN: fuse_type={fuse_type!r} is unknown; use 'sum' or 'avg'.")
        shapes = bottom_up.output_shape()
        unknown = [name for name in in_features if name not in shapes]
        if unknown or not in_features:
            raise ValueError(f"FPN: in_features={list(in_features)} must name outputs of bottom_up: {list(shapes)}.")
        strides: list[int] = [shapes[name].stride for name in in_features]  # type: ignore[misc]
        if any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(f"FPN: each stride must be twice the one before, got {strides} for {list(in_features)}.")

        self._stages = [int(math.log2(stride)) for stride in strides]
        for stage, name in zip(self._stages, in_features):
            bias = norm == ""
            lateral_norm, output_norm = get_norm(norm, out_channels), get_norm(norm, out_channels)
            lateral = Conv2d(shapes[name].channels, out_channels, kernel_size=1, bias=bias, norm=lateral_norm)
            output = Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=bias, norm=output_norm)
            for conv in (lateral, output):
                weight_init.c2_xavier_fill(conv)
            self.add_module(f"fpn_lateral{stage}", lateral)
            self.add_module(f"fpn_output{stage}", output)

        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        extra = 0 if top_block is None else int(top_block.num_levels)  # type: ignore[arg-type]
        levels = [*self._stages, *range(self._stages[-1] + 1, self._stages[-1] + 1 + extra)]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def lateral_convs(self) -> list[nn.Module]:
        """The 1x1 convolutions, from low to high resolution."""
        return [self.get_submodule(f"fpn_lateral{stage}") for stage in reversed(self._stages)]

    @property
    def output_convs(self) -> list[nn.Module]:
        """The 3x3 convolutions, from low to high resolution."""
        return [self.get_submodule(f"fpn_output{stage}") for stage in reversed(self._stages)]

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to ``{"p<k>": (N, out_channels, H / 2**k, W / 2**k)}``, high resolution first.

        H and W must be multiples of :attr:`size_divisibility`.
        """
        features = self.bottom_up(x)
        pyramid: list[Tensor] = []  # from low to high resolution
        merged: Tensor | None = None
        for name, lateral, output in zip(reversed(self.in_features), self.lateral_convs, self.output_convs):
            here = lateral(features[name])
            if merged is not None:
                here = here + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    here = here / 2
            merged = here
            pyramid.append(output(merged))
        outputs = dict(zip(self._out_features, reversed(pyramid)))
        if self.top_block is not None:
            source: Any = self.top_block.in_feature
            extra = self.top_block(features[source] if source in features else outputs[source])
            outputs.update(zip(self._out_features[len(pyramid) :], extra))
        return outputs


class LastLevelMaxPool(nn.Module):
    """p6 as every second pixel of p5, as in the FPN paper."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 by convolutions with stride 2, as in RetinaNet."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        """``in_feature``: name of the input of p6, with ``in_channels`` channels: of the backbone or of the pyramid."""
        super().__init__()
        self.in_feature, self.num_levels = in_feature, 2
        self.p6, self.p7 = (
            nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1)
            for channels in (in_channels, out_channels)
        )
        for conv in (self.p6, self.p7):  # only when both are there: seeded runs depend on the order of draws
            weight_init.c2_xavier_fill(conv)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]
