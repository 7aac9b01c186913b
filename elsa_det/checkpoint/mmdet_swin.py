"""mmdetection's and mmsegmentation's own Swin: other names than Microsoft's, and patch merging in another order."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor

_NAMES = (
    (r"^stages\.", "layers."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


def is_mmdet_swin(keys: Collection[str]) -> bool:
    """Whether these are the names of mmdetection's own Swin (2.14 and later, and all of 3.x)."""
    return "patch_embed.projection.weight" in keys and any(key.startswith("stages.") for key in keys)


def from_mmdet_swin(key: str, value: Tensor) -> tuple[str, Tensor]:
    """One weight in Microsoft's names and layout.

    mmdetection merges patches with ``nn.Unfold``: of each channel the four neighbours in the order (0,0), (0,1), (1,0),
    (1,1) of row and column. Swin has the channels of the neighbours (0,0), (1,0), (0,1), (1,1) one after the other.
    """
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    if ".downsample." in key:
        by_channel = value.unflatten(-1, (-1, 4))
        value = by_channel.movedim(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2).contiguous()
    return key, value
