"""Layers of the backbones. Maps are (B, H, W, C) throughout, which is channels-last NCHW."""

from .elsa import ELSAAttention
from .norm import job_batch_norm
from .patch import PatchEmbed, PatchMerging
from .residual import ResidualBlock
from .window_attention import WindowAttention, window_partition, window_reverse

__all__ = [
    "ELSAAttention",
    "PatchEmbed",
    "PatchMerging",
    "ResidualBlock",
    "WindowAttention",
    "job_batch_norm",
    "window_partition",
    "window_reverse",
]
