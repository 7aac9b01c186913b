"""The published sizes of ELSA-Swin and Swin, and the nano size that the quickstart trains."""

from __future__ import annotations

from typing import Any

ELSA_SWIN_VARIANTS: dict[str, dict[str, Any]] = {
    "nano": dict(embed_dim=32, depths=(1, 1, 2, 1), num_heads=(2, 4, 8, 16), group_width=4, mlp_ratio=3.0),
    "tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), group_width=4),
    "small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), group_width=8),
    "base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), group_width=8),
}

SWIN_VARIANTS: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in variant.items() if key != "group_width"}
    for name, variant in ELSA_SWIN_VARIANTS.items()
}
