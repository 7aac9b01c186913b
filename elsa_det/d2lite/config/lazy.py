"""Calls that are written down instead of made, and the files they are written in."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from .. import __version__
from ..utils.file_io import PathManager
from ..utils.registry import _convert_target_to_string, leads_to, to_public_name
from .config_file import as_config, run_config_file
from .to_python import to_python
from .yaml_io import dump_yaml, load_yaml

__all__ = ["LazyCall", "LazyConfig"]

logger = logging.getLogger(__name__)


class LazyCall:
    """``LazyCall(f)(a=1)`` is a config that says: call ``f`` with ``a=1``. ``instantiate`` makes the call.

    Example: ``layer = LazyCall(nn.Conv2d)(in_channels=32, out_channels=32, kernel_size=1); layer.out_channels = 64``
    """

    def __init__(self, target: Callable | str | Mapping) -> None:
        """``target``: a callable, its dotted name, or a config of it."""
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall needs a callable, its name or a config of it, not {target!r}.")
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        # omegaconf cannot hold a dataclass as a value: it takes it for a schema
        by_name = dataclasses.is_dataclass(self._target)
        target = _convert_target_to_string(self._target) if by_name else self._target
        return DictConfig(dict(kwargs, _target_=target), flags={"allow_objects": True})


class LazyConfig:
    """Configs of lazy calls: load, save, override."""

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config from a ``.py``, ``.yaml`` or ``.yml`` file.

        While a ``.py`` file runs, its ``detectron2`` imports and those of the config files it imports give d2lite.
        A YAML file is read without running what it names; see :mod:`.yaml_io`.

        Args:
            filename: path or URL.
            keys: one name or several of the file; None: all of its configs and dicts that do not begin with ``_``.

        Returns:
            The value of ``keys``; a tuple of values; or a DictConfig of everything. Dicts become DictConfigs.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: its name ends differently, or the YAML is not understood.
            KeyError: it has no such key.
            ImportError: an import in it fails.
        """
        filename = os.fspath(filename)
        if filename.endswith(".py"):
            loaded: Any = run_config_file(filename)
        elif filename.endswith((".yaml", ".yml")):
            loaded = OmegaConf.create(_read_yaml(filename), flags={"allow_objects": True})
        else:
            raise ValueError(f"Config file '{filename}' has to end in .py, .yaml or .yml.")

        if keys is not None:
            wanted = [keys] if isinstance(keys, str) else list(keys)
            missing = [key for key in wanted if key not in loaded]
            if missing:
                there = sorted(str(key) for key in loaded if not str(key).startswith("_"))
                raise KeyError(f"Config file '{filename}' has no {missing}; it has {there}.")
            values = tuple(as_config(loaded[key]) for key in wanted)
            return values[0] if isinstance(keys, str) else values
        if isinstance(loaded, dict):
            configs = {
                name: as_config(value)
                for name, value in loaded.items()
                if isinstance(value, (DictConfig, ListConfig, dict)) and not name.startswith("_")
            }
            return DictConfig(configs, flags={"allow_objects": True})
        return loaded

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """:meth:`load` with a path relative to the file that calls it."""
        caller = sys._getframe(1).f_code.co_filename
        if caller.startswith("<"):
            raise ValueError(f"load_rel('{filename}') is called from {caller}, not from a file. Use load instead.")
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Save a config as YAML that d2lite and Detectron2 load: targets by name, interpolations as they stand.

        What YAML cannot hold (a lambda, a function made in a config file) is written as readably as possible, and a
        warning says what cannot be loaded.

        Args:
            cfg: a config of omegaconf; it is not changed.
            filename: where to.
        """
        try:
            cfg = copy.deepcopy(cfg)
        except Exception as error:  # an object in it refuses; then its targets keep the names that yaml gives them
            logger.debug("The config is saved as it is, because it cannot be copied: %s", error)
            lost = []
        else:
            lost = _targets_by_name(cfg)
        if lost:
            logger.warning("%s cannot be instantiated when loaded: no import finds %s", filename, ", ".join(lost))
        try:
            container = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
            text = dump_yaml(container)
        except Exception:
            logger.exception("Unable to serialize the config to yaml. Error:")
            return
        stamp = f"# Saved by elsa_det's d2lite {__version__}. LazyConfig.load of Detectron2 reads it as well.\n"
        with PathManager.open(filename, "wb") as file:
            file.write((stamp + text).encode())
        try:
            load_yaml(text)
        except yaml.YAMLError as error:
            logger.warning(
                "The config has objects that YAML cannot hold: %s can be read, not loaded. %s", filename, error
            )

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change a config in place.

        Args:
            cfg: the config.
            overrides: ``a.b=1``, ``a={b: 1}``, ``a.list.0=x`` … in hydra's grammar. Keys that are not there are added.

        Returns:
            ``cfg``.

        Raises:
            KeyError: a key leads through something that is not a config.
            ValueError: a list of alternatives (``a=1,2``).
            NotImplementedError: a deletion (``~a``).
            hydra.errors.OverrideParseException: an override is not understood.
        """
        for override in OverridesParser.create().parse_overrides(overrides):
            key = override.key_or_group
            if override.is_delete():
                raise NotImplementedError(f"Deleting '{key}' from the config by an override is not supported.")
            if override.is_sweep_override():
                raise ValueError(
                    f"Override '{override.input_line}' gives '{key}' a choice of values. "
                    f"Write a list as {key}=[...], and quote text that has commas."
                )
            _update(cfg, key, override.value())
        return cfg

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """The config as Python-like text to look at: one line a value, calls as calls. Not meant to be run.

        ``prefix`` goes before every name. Interpolations are resolved. Formatted with black if that is installed.
        """
        return to_python(OmegaConf.to_container(cfg, resolve=True), prefix)


def _read_yaml(filename: str) -> Any:
    if not PathManager.isfile(filename):
        raise FileNotFoundError(f"There is no config file '{filename}' (working directory: {os.getcwd()}).")
    with PathManager.open(filename, "rb") as file:
        text = file.read()
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"Config file '{filename}' cannot be loaded: {error}") from error


def _calls(cfg: Any) -> Iterator[DictConfig]:
    """Every config with a ``_target_`` of its own, the outer before the inner. Interpolations are not followed."""
    if not OmegaConf.is_config(cfg) or cfg._is_none() or cfg._is_missing() or cfg._is_interpolation():
        return
    if isinstance(cfg, DictConfig):
        if "_target_" in cfg and not OmegaConf.is_interpolation(cfg, "_target_"):
            yield cfg
        for _, value in cfg.items_ex(resolve=False):
            yield from _calls(value)
    elif isinstance(cfg, ListConfig):
        for value in cfg._iter_ex(resolve=False):
            yield from _calls(value)


def _targets_by_name(cfg: Any) -> list[str]:
    """Put names for all targets, in place. Returns the ones that cannot be found again."""
    lost = []
    for call in _calls(cfg):
        target = call._target_
        if isinstance(target, str):
            call._target_ = to_public_name(target)
        elif callable(target):
            with contextlib.suppress(AttributeError):  # a partial has no name, but yaml can hold it
                call._target_ = name = _convert_target_to_string(target)
                if not leads_to(name, target):
                    lost.append(name)
    return lost


def _update(cfg: DictConfig, key: str, value: Any) -> None:
    parts = key.split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end])
        inner = OmegaConf.select(cfg, prefix, default=None)
        if inner is None:
            break  # from here on everything is new
        if not OmegaConf.is_config(inner):
            raise KeyError(
                f"Cannot override '{key}': '{prefix}' is not a config but {inner!r} ({type(inner).__name__})."
            )
    try:
        OmegaConf.update(cfg, key, value, merge=True)
    except OmegaConfBaseException:
        raise  # says which key
    except ValueError as error:
        raise KeyError(f"Cannot override '{key}' with {value!r}: {error}") from error
