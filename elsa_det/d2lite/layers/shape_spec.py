"""What a module needs to know of a feature map before it sees one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Channels, size in pixels and stride (input pixels a feature pixel) of a feature map; ``None`` is unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
