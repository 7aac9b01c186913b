"""Patch embedding and patch merging; maps are (B, H, W, C) between the layers of a backbone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .pointwise import Pointwise


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad a (B, H, W, C) map with zeros, right and bottom, to a multiple of ``multiple`` pixels."""
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x


class PatchEmbed(nn.Module):
    """(B, in_channels, H, W) image to (B, ceil(H / P), ceil(W / P), dim): strided convolution and LayerNorm."""

    def __init__(self, in_channels: int, dim: int, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        down, right = -image.shape[2] % self.patch_size, -image.shape[3] % self.patch_size
        if down or right:
            image = F.pad(image, (0, right, 0, down))
        return self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())


class PatchMerging(nn.Module):
    """(B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), 2 * dim).

    Neighbours are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column) parity, as in Swin.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Pointwise(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))
