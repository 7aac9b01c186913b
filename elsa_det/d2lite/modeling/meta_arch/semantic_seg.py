"""Where heads of semantic segmentation are registered by name."""

from __future__ import annotations

from ...utils.registry import Registry

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
"""Heads that label pixels, made from a config and the shapes of the maps they may take."""
