"""The base of convolutional blocks."""

from __future__ import annotations

from torch import nn

from .batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """A block that maps (N, ``in_channels``, H, W) to (N, ``out_channels``, H / ``stride``, W / ``stride``)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> CNNBlockBase:
        """Stop training this block: no gradients, batch norms frozen. Returns the block itself."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
