"""The ELSA attention module: Hadamard attention makes the logits, the operator aggregates."""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import Parameter, init
from torch.utils.checkpoint import checkpoint

from ..ops import elsa_attention
from .pointwise import Pointwise, pointwise


def hadamard_dim(dim: int, group_width: int) -> int:
    """Width of q and k: two thirds of ``dim``, rounded up to a multiple of ``group_width``."""
    width = dim // 3 * 2
    return -(-width // group_width) * group_width


class ELSAAttention(nn.Module):
    """Enhanced local self-attention on (B, H, W, dim) maps (Zhou et al., arXiv 2112.12786).

    q, k and v come from one projection; the Hadamard product of q and k goes through a K x K group convolution, GELU
    and a 1 x 1 convolution that give the K*K logits of every head; :func:`elsa_det.ops.elsa_attention` aggregates v.

    Args:
        dim: channels in and out.
        num_heads: heads G; must divide ``dim``.
        kernel_size: K, odd.
        dilation: distance between neighbouring taps.
        group_width: channels in a group of the group convolution.
        lam: exponent of the multiplicative ghost matrix; 0 leaves it out.
        gamma: factor of the additive ghost matrix; 0 leaves it out.
        qkv_bias: whether the projection has a bias.
        scale: factor on q * k; the published models use 1.
        proj_drop: dropout rate after the output projection.
        recompute_logits: keep the group convolution's output for the backward instead of the GELU's and the K*K logits
            of every head, which are then computed anew: less memory for some more time, and the same gradients.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or ``kernel_size`` is not odd.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        *,
        dilation: int = 1,
        group_width: int = 8,
        lam: float = 0.0,
        gamma: float = 1.0,
        qkv_bias: bool = True,
        scale: float = 1.0,
        proj_drop: float = 0.0,
        recompute_logits: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.lam, self.gamma, self.scale = lam, gamma, scale
        self.recompute_logits = recompute_logits
        self.dim_qk = hadamard_dim(dim, group_width)
        self.pre_proj = nn.Conv2d(dim, 2 * self.dim_qk + dim, 1, bias=qkv_bias)
        self.attn = nn.Sequential(
            nn.Conv2d(
                self.dim_qk,
                self.dim_qk,
                kernel_size,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                groups=self.dim_qk // group_width,
            ),
            nn.GELU(),
            nn.Conv2d(self.dim_qk, num_heads * kernel_size**2, 1),
        )
        # Published layout: (2, 1, C, K, K) holds [mul, add]; with only one of them in use, (1, C, K, K).
        shape = (1, dim, kernel_size, kernel_size)
        if lam and gamma:
            self.ghost_head: Parameter | None = Parameter(Tensor(2, *shape))
        elif lam or gamma:
            self.ghost_head = Parameter(Tensor(*shape))
        else:
            self.register_parameter("ghost_head", None)
        self.post_proj = Pointwise(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_ghost_head()

    def reset_ghost_head(self) -> None:
        """Initialise the ghost matrices: mul ~ N(0, 1), add ~ truncated normal of std 0.02."""
        if self.ghost_head is None:
            return
        mul, add = (self.ghost_head[0], self.ghost_head[1]) if self.lam and self.gamma else (self.ghost_head,) * 2
        if self.lam:
            init.normal_(mul.data)
        if self.gamma:
            trunc_normal_(add.data, std=0.02)

    def ghost_matrices(self) -> tuple[Tensor | None, Tensor | None]:
        """``mul ** lam`` and ``gamma * add`` as the operator takes them, (C, K, K) each, None where not in use."""
        if self.ghost_head is None:
            return None, None
        if self.lam and self.gamma:
            mul, add = self.ghost_head[0, 0], self.ghost_head[1, 0]
        else:
            mul = add = self.ghost_head[0]
        used_mul = (mul if self.lam == 1 else mul**self.lam) if self.lam else None
        used_add = (add if self.gamma == 1 else add * self.gamma) if self.gamma else None
        return used_mul, used_add

    def forward(self, x: Tensor) -> Tensor:
        # (B, H, W, C) is channels-last NCHW: the 1x1 convolutions are linear layers and the permutations are views.
        qkv = pointwise(x, self.pre_proj.weight.flatten(1), self.pre_proj.bias)
        q, k, value = qkv.split([self.dim_qk, self.dim_qk, x.shape[-1]], dim=-1)
        hadamard = q * k
        if self.scale != 1:
            hadamard = hadamard * self.scale
        features = self.attn[0](hadamard.permute(0, 3, 1, 2))
        value = value.permute(0, 3, 1, 2)
        if self.recompute_logits and torch.is_grad_enabled():
            out = checkpoint(self._aggregate, value, features, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._aggregate(value, features)
        return self.proj_drop(self.post_proj(out.permute(0, 2, 3, 1)))

    def _aggregate(self, value: Tensor, features: Tensor) -> Tensor:
        """From the group convolution's output to the sum over neighbourhoods, all maps (B, channels, H, W)."""
        to_logits = cast(nn.Conv2d, self.attn[2])
        features = self.attn[1](features).permute(0, 2, 3, 1)
        logits = pointwise(features, to_logits.weight.flatten(1), to_logits.bias).permute(0, 3, 1, 2)
        ghost_mul, ghost_add = self.ghost_matrices()
        return elsa_attention(value, logits, ghost_mul, ghost_add, kernel_size=self.kernel_size, dilation=self.dilation)
