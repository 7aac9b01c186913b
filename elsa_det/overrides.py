"""Overrides of a config from the command line, checked before they are applied."""

from __future__ import annotations

import difflib
import inspect
import pydoc
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config_targets import calls_in, check_calls
from .d2 import LazyConfig
from .errors import UserError

_SCALARS: tuple[type, ...] = (bool, int, float, str)


def apply_overrides(cfg: DictConfig, overrides: Sequence[str], known: frozenset[str] | None = None) -> DictConfig:
    """Change a config in place, as ``LazyConfig.apply_overrides`` but with every key and type checked.

    Args:
        cfg: the config.
        overrides: ``a.b=1``, ``a.list.0=x``, ``a={b: 1}`` in hydra's grammar. A key must exist, or be an argument of
            the object that its node makes; ``+a.b=1`` adds any key.
        known: names that the config may call beside what every one may, see
            :func:`~elsa_det.config_targets.check_calls`; default: those that it calls now.

    Returns:
        ``cfg``.

    Raises:
        UserError: an override is not understood, its key does not exist (the nearest that do are named), its value
            is of another type than the one it replaces, or it has the config call what is not allowed.
    """
    if known is None and overrides:
        known = calls_in(cfg)
    for text in overrides:
        added = text.startswith("+")
        try:
            parsed = OverridesParser.create().parse_override(text)
            value = None if parsed.is_delete() else parsed.value()
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"override {text!r} is not understood: write key=value, quote text that has commas, spaces or brackets "
                f"(key='\"a, b\"'). {_first_line(error)}"
            ) from error
        key = parsed.key_or_group
        if parsed.is_delete():
            raise UserError(f"override {text!r}: keys cannot be deleted; set {key}=null instead")
        if parsed.is_sweep_override():
            raise UserError(f"override {text!r} gives {key} a choice of values: write a list as {key}=[a,b]")
        try:
            if not added:
                _check_type(key, _existing(cfg, key), value)
            LazyConfig.apply_overrides(cfg, [text.lstrip("+")])
        except UserError:
            raise
        except (OmegaConfBaseException, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"override {text!r} does not fit the config: {_first_line(error)}") from error
        check_calls(cfg, f"override {text!r}", known or frozenset())
    return cfg


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _existing(cfg: DictConfig, key: str) -> Any:
    """The value that ``key`` has now; None for an argument that the config leaves to its default.

    Raises:
        UserError: there is no such key.
    """
    node: Any = cfg
    parts = key.split(".")
    for i, part in enumerate(parts):
        path = ".".join(parts[:i])
        if OmegaConf.is_list(node):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f"{path} is a list of {len(node)}: use {path}.0 to {path}.{len(node) - 1}, not {key}")
            node = _child(node, int(part))
            continue
        if node is None and path:
            raise UserError(f"override {key}: {path} is null, so it has no {part!r}. Set {path} first, or use +{key}=…")
        if not OmegaConf.is_dict(node):
            raise UserError(f"override {key}: {path} is {_describe(node)}, so it has no {part!r}")
        if part not in node:
            known = [str(name) for name in node]
            arguments, takes_any = _arguments(node)
            if part in arguments or takes_any:
                if i + 1 < len(parts):
                    raise UserError(f"override {key}: {path}.{part} is left to its default: set it as a whole")
                return None
            raise UserError(_unknown(key, path, part, sorted({*known, *arguments} - {"_target_"})))
        node = _child(node, part)
    return node


def _child(node: DictConfig | ListConfig, key: Any) -> Any:
    if OmegaConf.is_missing(node, key):
        return None
    return node[key]


def _arguments(node: DictConfig) -> tuple[set[str], bool]:
    """Names that the target of a LazyCall takes, and whether it takes any."""
    target = node.get("_target_")
    if target is None:
        return set(), False
    if isinstance(target, str):
        target = pydoc.locate(target)
    # Detectron2's classes with @configurable take their explicit arguments or a yacs config: look at the former.
    function = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), True
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {"self"}, takes_any


def _unknown(key: str, path: str, part: str, known: list[str]) -> str:
    near = difflib.get_close_matches(part, known, n=3, cutoff=0.5)
    prefix = f"{path}." if path else ""
    if near:
        hint = f"Did you mean {' or '.join(prefix + name for name in near)}?"
    else:
        hint = f"{path or 'The config'} has: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}."
    return f"there is no key {key} in the config. {hint} (+{key}=… adds a key.)"


def _check_type(key: str, old: Any, new: Any) -> None:
    """Raise unless ``new`` can stand where ``old`` stood."""
    if old is None or new is None or (isinstance(new, str) and new.startswith("${")):
        return
    if isinstance(old, bool):
        fits = isinstance(new, bool)
    elif isinstance(old, int):
        fits = isinstance(new, int) and not isinstance(new, bool)
    elif isinstance(old, float):
        fits = isinstance(new, (int, float)) and not isinstance(new, bool)
    elif isinstance(old, str):
        fits = isinstance(new, (*_SCALARS, list))  # one name, or several
    elif OmegaConf.is_list(old) or isinstance(old, (list, tuple)):
        # A list of names may also be given as one, or as the file that has them.
        fits = isinstance(new, list) or (isinstance(new, str) and all(isinstance(value, str) for value in old))
    elif OmegaConf.is_dict(old):
        fits = isinstance(new, dict)
    else:
        return
    if not fits:
        remedy = f": write it as in {key}={old}" if isinstance(old, (bool, int, float)) else ""
        if isinstance(old, int) and isinstance(new, float) and new % 1 == 0:
            remedy = f": write {key}={int(new)}"
        raise UserError(f"{key} is {_describe(old)}; {new!r} is {_describe(new)}{remedy}")


def _describe(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    for kind, name in names.items():
        if isinstance(value, kind):
            return name
    if OmegaConf.is_list(value) or isinstance(value, (list, tuple)):
        return "a list"
    if OmegaConf.is_dict(value) or isinstance(value, dict):
        return "a group of keys"
    return f"a {type(value).__name__}"
