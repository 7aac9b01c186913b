"""Swin Transformer, the baseline that ELSA-Swin is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...layers import WindowAttention
from .hierarchical import HierarchicalBackbone


class Swin(HierarchicalBackbone):
    """Swin as a dense-prediction backbone (Liu et al., arXiv 2103.14030), on the code of :class:`ELSASwin`.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage.
        depths: blocks per stage.
        num_heads: heads per stage.
        window_size: side of the windows in pixels of the map; every second block shifts by half of it.
        qkv_bias: whether the q/k/v projections have a bias.
        mlp_ratio, drop_rate, drop_path_rate, out_indices, frozen_stages, use_checkpoint, in_channels: see
            :class:`HierarchicalBackbone`.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        *,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
        in_channels: int = 3,
    ) -> None:
        def attention(stage: int, block: int, dim: int, heads: int) -> nn.Module:
            shift = window_size // 2 * (block % 2)
            return WindowAttention(dim, heads, window_size, shift=shift, qkv_bias=qkv_bias, proj_drop=drop_rate)

        super().__init__(
            attention,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            use_checkpoint=use_checkpoint,
            in_channels=in_channels,
        )
