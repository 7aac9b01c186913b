"""Where backbones are registered by name."""

from __future__ import annotations

from ...utils.registry import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
"""Callables ``(cfg, input_shape: ShapeSpec) -> Backbone``."""
