"""Swin's shifted-window attention on (B, H, W, C) maps (Liu et al., arXiv 2103.14030)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .patch import pad_to_multiple
from .pointwise import Pointwise


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) to (B * H/w * W/w, w * w, C); H and W must be multiples of the window size w."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`window_partition`: (B * windows, w * w, C) to (B, height, width, C)."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window_size, width // window_size, window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_position_index(window_size: int) -> Tensor:
    """(w*w, w*w) index into the bias table: offset query - key plus w - 1 per axis, row * (2w - 1) + column."""
    axis = torch.arange(window_size)
    position = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = position[:, :, None] - position[:, None, :] + window_size - 1
    return offset[0] * (2 * window_size - 1) + offset[1]


def shifted_window_mask(height: int, width: int, window_size: int, shift: int, like: Tensor) -> Tensor:
    """(windows, w*w, w*w) additive mask of a map rolled by ``shift``: -inf between pixels that are not neighbours."""

    def bands(size: int) -> Tensor:
        index = torch.arange(size, device=like.device)
        return (index >= size - window_size).long() + (index >= size - shift).long()

    regions = bands(height)[:, None] * 3 + bands(width)[None, :]
    windows = window_partition(regions[None, :, :, None], window_size).squeeze(-1)
    mask = torch.zeros((), dtype=like.dtype, device=like.device).expand(len(windows), *[window_size**2] * 2)
    return mask.masked_fill(windows[:, :, None] != windows[:, None, :], float("-inf"))


class WindowAttention(nn.Module):
    """Multi-head attention within windows of a (B, H, W, dim) map, cyclically shifted, with relative position bias.

    The map is padded with zeros to a multiple of the window size; padded pixels take part, as in Swin for dense
    prediction.

    Args:
        dim: channels in and out.
        num_heads: heads; must divide ``dim``.
        window_size: side of a window in pixels.
        shift: roll in pixels before partition; 0 for none.
        qkv_bias: whether the projection has a bias.
        proj_drop: dropout rate after the output projection.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or ``shift`` is not in [0, window_size).
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        *,
        shift: int = 0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        if not 0 <= shift < window_size:
            raise ValueError(f"shift must be in [0, {window_size}), got {shift}")
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        self.qkv = Pointwise(dim, 3 * dim, bias=qkv_bias)
        self.proj = Pointwise(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window_size)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        padded_height, padded_width = x.shape[1:3]
        x = self._attend(window_partition(x, self.window_size), padded_height, padded_width)
        x = window_reverse(x, self.window_size, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def _attend(self, windows: Tensor, height: int, width: int) -> Tensor:
        count, pixels, channels = windows.shape
        qkv = self.qkv(windows).view(count, pixels, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None].to(q.dtype)
        if self.shift:
            mask = shifted_window_mask(height, width, self.window_size, self.shift, like=bias)
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous())
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(count, pixels, channels)))
