"""Configs as Python files whose calls are made later."""

from .instantiate import instantiate
from .lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
