"""The four-stage pre-norm hierarchy that ELSA-Swin and Swin share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...d2 import Backbone
from ...layers import PatchEmbed, PatchMerging, ResidualBlock

#: (stage, block, channels, heads) -> attention module
AttentionFactory = Callable[[int, int, int, int], nn.Module]


class Stage(nn.Module):
    """A run of residual blocks; the patch merging behind it makes the input of the next stage."""

    def __init__(self, blocks: Sequence[ResidualBlock], downsample: PatchMerging | None, checkpointing: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class HierarchicalBackbone(Backbone):
    """Patch embedding and stages of attention blocks; a normalised map per stage, strides 4, 8, 16, 32.

    Any input size: the image is zero-padded right and bottom to whole patches. Output ``p{i}`` is (B, embed_dim * 2**i,
    ceil(H / (4 * 2**i)), ceil(W / (4 * 2**i))), in channels-last memory format.

    Args:
        attention: makes the attention module of a block.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths: blocks per stage.
        num_heads: heads per stage.
        mlp_ratio: hidden width of the MLPs in multiples of the channels.
        drop_rate: dropout rate in the MLPs.
        drop_path_rate: stochastic depth, rising linearly from 0 over all blocks to this rate.
        out_indices: stages whose maps are returned.
        frozen_stages: -1 trains all; 0 freezes the patch embedding; n freezes it and the first n stages.
        use_checkpoint: recompute the blocks' activations in the backward instead of keeping them.
        in_channels: channels of the image.

    Raises:
        ValueError: lists of different lengths, or an output or frozen stage that does not exist.
    """

    def __init__(
        self,
        attention: AttentionFactory,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} must be of the same length")
        stages = len(depths)
        out_indices = tuple(range(stages)) if out_indices is None else tuple(out_indices)
        if not out_indices or any(not 0 <= i < stages for i in out_indices):
            raise ValueError(f"out_indices {out_indices} must name stages 0..{stages - 1}")
        if not -1 <= frozen_stages <= stages:
            raise ValueError(f"frozen_stages must be in [-1, {stages}], got {frozen_stages}")
        self.out_indices, self.frozen_stages = out_indices, frozen_stages
        channels = [embed_dim * 2**i for i in range(stages)]
        self.patch_embed = PatchEmbed(in_channels, embed_dim)
        rates = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.layers = nn.ModuleList()
        for i, dim in enumerate(channels):
            blocks = [
                ResidualBlock(
                    dim, attention(i, j, dim, num_heads[i]), mlp_ratio=mlp_ratio, drop=drop_rate, drop_path=next(rates)
                )
                for j in range(depths[i])
            ]
            self.layers.append(Stage(blocks, PatchMerging(dim) if i + 1 < stages else None, use_checkpoint))
        for i in out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(channels[i]))
        self.apply(_init_weights)

        self._out_features = [f"p{i}" for i in out_indices]
        self._out_feature_channels = {f"p{i}": channels[i] for i in out_indices}
        self._out_feature_strides = {f"p{i}": self.patch_embed.patch_size * 2**i for i in out_indices}
        self._freeze()

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, *self.layers[: self.frozen_stages]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> HierarchicalBackbone:
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) image, normalised, to the maps ``{"p0": …, "p1": …}``."""
        x = self.patch_embed(image)
        outputs = {}
        for i, stage in enumerate(cast(list[Stage], self.layers)):
            x = stage(x)
            if i in self.out_indices:
                outputs[f"p{i}"] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs


def _init_weights(module: nn.Module) -> None:
    """Linear layers ~ truncated normal of std 0.02 with zero bias; everything else keeps its own initialisation."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
