"""A fully convolutional head on one map, such as UPerNet's auxiliary one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...d2 import ShapeSpec
from .conv import ConvNormReLU, Norm
from .decode_head import DecodeHead, FeatureMaps, Features


class FCNHead(DecodeHead):
    """Convolutions on one map, then the classifier (Long et al., arXiv 1411.4038).

    Args:
        in_channels: channels of the map; or those of all maps, of which ``in_index`` is taken.
        num_classes: classes, without the ignored one.
        channels: width of the head.
        num_convs: convolutions before the classifier; with none, ``channels`` must be those of the map.
        kernel_size: of the convolutions, odd.
        concat_input: join the map with the result of the convolutions by a further convolution.
        in_index: place of the map where features come as a sequence.
        in_features: name of the map where features come as a mapping; by default ``p{in_index}``.
        input_shape: instead of ``in_channels``, the shapes of all maps by name.
        norm: of every convolution, see :class:`~elsa_det.modeling.semantic.conv.ConvNormReLU`.
        dropout_ratio, align_corners, loss_weight, ignore_label, average_over_valid: see
            :class:`~elsa_det.modeling.semantic.decode_head.DecodeHead`.

    Raises:
        ValueError: the map is not told, or a number is out of its range.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int] | None = None,
        channels: int = 256,
        *,
        num_classes: int,
        num_convs: int = 1,
        kernel_size: int = 3,
        concat_input: bool = False,
        in_index: int = 2,
        in_features: str | None = None,
        input_shape: Mapping[str, ShapeSpec] | None = None,
        norm: Norm = "auto",
        dropout_ratio: float = 0.1,
        align_corners: bool = False,
        loss_weight: float = 1.0,
        ignore_label: int = 255,
        average_over_valid: bool = True,
    ) -> None:
        if isinstance(in_channels, Sequence):
            if not -len(in_channels) <= in_index < len(in_channels):
                raise ValueError(f"in_index={in_index} is not one of the maps with in_channels={list(in_channels)}")
            in_channels = in_channels[in_index]
        super().__init__(
            FeatureMaps.choose(
                None if in_channels is None else [in_channels],
                [in_index],
                None if in_features is None else [in_features],
                input_shape,
            ),
            channels,
            num_classes,
            dropout_ratio=dropout_ratio,
            align_corners=align_corners,
            loss_weight=loss_weight,
            ignore_label=ignore_label,
            average_over_valid=average_over_valid,
        )
        (width,) = self.inputs.channels
        if num_convs < 0 or (num_convs == 0 and width != channels):
            raise ValueError(f"num_convs={num_convs} does not lead from {width} channels to {channels}")
        widths = [width, *[channels] * num_convs]
        self.convs = nn.Sequential(*(ConvNormReLU(a, b, kernel_size, norm) for a, b in pairwise(widths)))
        self.conv_cat = ConvNormReLU(width + channels, channels, kernel_size, norm) if concat_input else None

    def forward(self, features: Features | Tensor) -> Tensor:
        """Maps of the backbone, or the one map itself, to (B, num_classes, h, w) logits at its resolution."""
        (x,) = [features] if isinstance(features, Tensor) else self.inputs.select(features)
        out = self.convs(x)
        if self.conv_cat is not None:
            out = self.conv_cat(torch.cat([x, out], dim=1))
        return self.classify(out)
