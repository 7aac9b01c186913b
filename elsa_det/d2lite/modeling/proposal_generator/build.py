"""Where proposal generators are registered by name."""

from __future__ import annotations

from ...utils.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
"""Modules that turn images and features into proposals, as :class:`~.rpn.RPN` does."""
