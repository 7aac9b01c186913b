"""Making the calls that a config describes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..utils.registry import locate

__all__ = ["instantiate"]


def instantiate(cfg: Any) -> Any:
    """Call every ``_target_`` in a config with the other keys as arguments, innermost first.

    Args:
        cfg: a mapping with ``_target_`` (a callable, its dotted name, or a config of one) is called. Lists and the
            arguments of calls are gone through. A dataclass config becomes its dataclass. All else, mappings without
            ``_target_`` included, is returned as it is.

    Raises:
        ImportError: a ``_target_`` names nothing.
        TypeError: a ``_target_`` cannot be called, or not with these arguments.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and "_target_" in cfg):
        return cfg

    arguments = {key: instantiate(value) for key, value in cfg.items()}
    target = arguments.pop("_target_")
    if isinstance(target, str):
        target = locate(target)
    if not callable(target):
        raise TypeError(f"_target_ is {target!r} ({type(target).__name__}), which cannot be called.")
    try:
        return target(**arguments)
    except TypeError:  # the message of a wrong argument does not say which part of the config is meant
        name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
        logging.getLogger(__name__).error("Error when instantiating %s with arguments %s!", name, sorted(arguments))
        raise
