"""Semantic FPN, the light alternative to UPerNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ...d2 import ShapeSpec
from .conv import ConvNormReLU, Norm
from .decode_head import DecodeHead, FeatureMaps, Features


class SemanticFPNHead(DecodeHead):
    """A feature pyramid, and the sum of its levels brought to the finest resolution by convolutions.

    Kirillov et al., Panoptic Feature Pyramid Networks, arXiv 1901.02446, the semantic branch with its pyramid. A level
    that is n times halved passes n pairs of a 3x3 convolution and a twofold upsampling, the finest one convolution.
    Maps are resized to each other's sizes, so any size of image will do.

    Args:
        in_channels: channels of the maps, from fine to coarse, each of half the resolution of the one before.
        num_classes: classes, without the ignored one.
        channels: width of the branch that the classifier sees.
        pyramid_channels: width of the pyramid.
        in_index, in_features, input_shape: see :class:`UPerHead`.
        norm: of the branch, by default group normalisation in groups of 32; the pyramid has none.
        dropout_ratio, align_corners, loss_weight, ignore_label, average_over_valid: see
            :class:`~elsa_det.modeling.semantic.decode_head.DecodeHead`.

    Raises:
        ValueError: the maps are not told, or contradict each other.
    """

    def __init__(
        self,
        in_channels: Sequence[int] | None = None,
        channels: int = 128,
        *,
        num_classes: int,
        pyramid_channels: int = 256,
        in_index: Sequence[int] | None = None,
        in_features: Sequence[str] | None = None,
        input_shape: Mapping[str, ShapeSpec] | None = None,
        norm: Norm = "GN",
        dropout_ratio: float = 0.1,
        align_corners: bool = False,
        loss_weight: float = 1.0,
        ignore_label: int = 255,
        average_over_valid: bool = True,
    ) -> None:
        super().__init__(
            FeatureMaps.choose(in_channels, in_index, in_features, input_shape),
            channels,
            num_classes,
            dropout_ratio=dropout_ratio,
            align_corners=align_corners,
            loss_weight=loss_weight,
            ignore_label=ignore_label,
            average_over_valid=average_over_valid,
        )
        widths = self.inputs.channels
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, pyramid_channels, 1) for width in widths)
        self.output_convs = nn.ModuleList(nn.Conv2d(pyramid_channels, pyramid_channels, 3, padding=1) for _ in widths)
        for conv in (*self.lateral_convs, *self.output_convs):
            nn.init.xavier_uniform_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormReLU(pyramid_channels if step == 0 else channels, channels, 3, norm)
                for step in range(max(1, level))
            )
            for level in range(len(widths))
        )

    def forward(self, features: Features) -> Tensor:
        """Maps of the backbone to (B, num_classes, h, w) logits at the resolution of the finest map."""
        maps = self.inputs.select(features)
        merged: Tensor | None = None
        total: Tensor | None = None
        for level in reversed(range(len(maps))):
            here = self.lateral_convs[level](maps[level])
            if merged is not None:
                here = here + F.interpolate(merged, size=here.shape[-2:], mode="nearest")
            merged = here
            x = self.output_convs[level](merged)
            for step, conv in enumerate(cast(nn.ModuleList, self.branches[level])):
                x = conv(x)
                if level > 0:
                    x = self.resize(x, maps[level - 1 - step])
            total = x if total is None else total + x
        assert total is not None
        return self.classify(total)
