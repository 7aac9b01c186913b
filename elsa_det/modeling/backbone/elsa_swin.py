"""ELSA-Swin: Swin's hierarchy with enhanced local self-attention in all stages but the last."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...layers import ELSAAttention, WindowAttention
from .hierarchical import HierarchicalBackbone


class ELSASwin(HierarchicalBackbone):
    """ELSA-Swin as a dense-prediction backbone (Zhou et al., arXiv 2112.12786).

    All stages but the last use :class:`~elsa_det.layers.ELSAAttention`; the last uses Swin's window attention, shifted
    by half a window in every second block. Inputs and outputs are those of :class:`HierarchicalBackbone`.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage.
        depths: blocks per stage.
        num_heads: heads per stage.
        window_size: side of ELSA's neighbourhoods and of the last stage's windows, in pixels of the map; odd.
        group_width: channels in a group of ELSA's group convolution.
        lam: exponent of the multiplicative ghost matrix; 0 leaves it out.
        gamma: factor of the additive ghost matrix; 0 leaves it out.
        dilation: dilation of ELSA's neighbourhoods.
        recompute_logits: see :class:`~elsa_det.layers.ELSAAttention`.
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
        group_width: int = 4,
        *,
        lam: float = 0.0,
        gamma: float = 1.0,
        dilation: int = 1,
        recompute_logits: bool = False,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
        in_channels: int = 3,
    ) -> None:
        last = len(depths) - 1

        def attention(stage: int, block: int, dim: int, heads: int) -> nn.Module:
            if stage == last:
                return WindowAttention(
                    dim,
                    heads,
                    window_size,
                    shift=window_size // 2 * (block % 2),
                    qkv_bias=qkv_bias,
                    proj_drop=drop_rate,
                )
            return ELSAAttention(
                dim,
                heads,
                window_size,
                dilation=dilation,
                group_width=group_width,
                lam=lam,
                gamma=gamma,
                qkv_bias=qkv_bias,
                proj_drop=drop_rate,
                recompute_logits=recompute_logits,
            )

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
