"""The pre-norm transformer block that ELSA and Swin share."""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from .pointwise import Mlp


class ResidualBlock(nn.Module):
    """``x + drop_path(attn(norm1(x)))``, then ``x + drop_path(mlp(norm2(x)))`` on (B, H, W, dim) maps.

    Args:
        attn: a module from (B, H, W, dim) to the same.
        mlp_ratio: hidden width of the MLP in multiples of ``dim``.
        drop: dropout rate in the MLP.
        drop_path: stochastic depth rate of both branches.
    """

    def __init__(
        self, dim: int, attn: nn.Module, *, mlp_ratio: float = 4.0, drop: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
