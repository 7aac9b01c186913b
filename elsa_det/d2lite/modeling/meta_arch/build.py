"""Where whole models are registered by name."""

from __future__ import annotations

from ...utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
"""Models that take a list of input dicts, as :class:`~.rcnn.GeneralizedRCNN` does."""
