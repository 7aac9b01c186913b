"""UPerNet's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...d2 import ShapeSpec
from .conv import ConvNormReLU, Norm
from .decode_head import DecodeHead, FeatureMaps, Features


class UPerHead(DecodeHead):
    """Pyramid pooling on the coarsest map, a feature pyramid down to the finest, and the fusion of all its levels.

    Xiao et al., Unified Perceptual Parsing for Scene Understanding, arXiv 1807.10221, for semantic segmentation alone.
    The coarsest map is averaged over grids of ``pool_scales`` cells a side, each projected to ``channels``, resized
    back and joined with the map by a 3x3 convolution. From there down, each level is a 1x1 projection of its map plus
    the level above, resized. All levels but the coarsest pass a 3x3 convolution; resized to the finest map they are
    fused by another, dropped out, and classified.

    Args:
        in_channels: channels of the maps, from fine to coarse.
        num_classes: classes, without the ignored one.
        channels: width of the head.
        pool_scales: cells a side of the pooling grids.
        in_index: places of the maps where features come as a sequence; by default all in turn.
        in_features: names of the maps where features come as a mapping; by default ``p{i}`` for each place.
        input_shape: instead of ``in_channels``, the shapes of all maps by name, as a backbone's ``output_shape()``
            gives them; then ``in_features`` are all of them by default.
        norm: of every convolution, see :class:`~elsa_det.modeling.semantic.conv.ConvNormReLU`.
        dropout_ratio, align_corners, loss_weight, ignore_label, average_over_valid: see
            :class:`~elsa_det.modeling.semantic.decode_head.DecodeHead`.

    Raises:
        ValueError: the maps are not told, or contradict each other.
    """

    def __init__(
        self,
        in_channels: Sequence[int] | None = None,
        channels: int = 512,
        *,
        num_classes: int,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        in_index: Sequence[int] | None = None,
        in_features: Sequence[str] | None = None,
        input_shape: Mapping[str, ShapeSpec] | None = None,
        norm: Norm = "auto",
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
        *fine, top = self.inputs.channels
        self.pool_scales = tuple(pool_scales)
        self.pooling = nn.ModuleList(ConvNormReLU(top, channels, 1, norm) for _ in self.pool_scales)
        self.pooling_fusion = ConvNormReLU(top + len(self.pool_scales) * channels, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(width, channels, 1, norm) for width in fine)
        self.output_convs = nn.ModuleList(ConvNormReLU(channels, channels, 3, norm) for _ in fine)
        self.fusion = ConvNormReLU(len(self.inputs.channels) * channels, channels, 3, norm)

    def forward(self, features: Features) -> Tensor:
        """Maps of the backbone to (B, num_classes, h, w) logits at the resolution of the finest map."""
        *fine, top = self.inputs.select(features)
        levels = [self._pool(top)]
        for lateral, x in zip(reversed(self.lateral_convs), reversed(fine)):
            levels.insert(0, lateral(x) + self.resize(levels[0], x))
        outputs = [conv(level) for conv, level in zip(self.output_convs, levels)] + levels[-1:]
        finest, *coarser = outputs
        return self.classify(self.fusion(torch.cat([finest, *(self.resize(x, finest) for x in coarser)], dim=1)))

    def _pool(self, top: Tensor) -> Tensor:
        parts = [top]
        for scale, conv in zip(self.pool_scales, self.pooling):
            parts.append(self.resize(conv(F.adaptive_avg_pool2d(top, scale)), top))
        return self.pooling_fusion(torch.cat(parts, dim=1))
