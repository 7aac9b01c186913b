"""What the calls in a config may be: those of a file of data, and those that overrides bring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .d2 import NotTrusted, check_trusted, find_trusted, load_yaml, locate
from .errors import UserError

_TARGET = "_target_"
_PLAIN = re.compile(r"\$\{(?:\.*[\w\-.\[\]]+|oc\.env:[^${}]*|oc\.select:[^${}]*)\}")
"""An interpolation with nothing in it but the place of another value, or an environment variable."""


def read_yaml_config(path: str | Path) -> Any:
    """A saved config as a DictConfig; nothing of what it names is called, and what it may not name not imported.

    Both providers' files are read, and reading does not depend on which one runs.

    Raises:
        UserError: it is not YAML, no mapping, or holds something that a file may not hold.
    """
    try:
        content = load_yaml(Path(path).read_bytes(), locate)
        if not isinstance(content, dict):
            raise UserError(f"config file {path} cannot be loaded: it holds no mapping of keys to values")
        cfg = OmegaConf.create(content, flags={"allow_objects": True})
    except UserError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"config file {path} cannot be loaded: {error}") from error
    check_calls(cfg, str(path))
    return cfg


def check_calls(cfg: Any, place: str, known: frozenset[str] = frozenset()) -> None:
    """Raise unless all that a config calls, or holds as a function, is harmless or trusted by the user.

    Args:
        cfg: a config; every ``_target_`` in it is looked at, after interpolation.
        place: the file or override, for the message.
        known: names that need no look, because code of the user's has put them there; see :func:`calls_in`.

    Raises:
        UserError: naming the key, what is called, and how to allow it.
    """
    for key, value in _values(cfg, "", place, known):
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise UserError(f"{place}: {key} is a whole number of {value.bit_length()} bits")
        try:
            if key.rpartition(".")[2] == _TARGET:
                if name_of(value) in known:
                    continue
                if isinstance(value, str):
                    try:
                        find_trusted(value, locate)
                    except ImportError:
                        continue  # nothing has this name; making the call says so
                    except RecursionError:
                        raise NotTrusted(f"{value[:80]!r} is too long a name") from None
                    continue
                if not callable(value):
                    raise NotTrusted(f"{str(value)[:80]!r} is no name of a class or function")
            if callable(value) and name_of(value) not in known:
                check_trusted(value)
        except NotTrusted as error:
            raise UserError(f"{place}: {key}: {error}") from error


def calls_in(cfg: Any) -> frozenset[str]:
    """The names of all that a config calls or holds as a function, and its interpolations, its code being trusted."""
    return frozenset(
        name_of(value)
        for key, value in _values(cfg, "", None)
        if callable(value) or (isinstance(value, str) and (key.rpartition(".")[2] == _TARGET or "${" in value))
    )


def name_of(value: Any) -> str:
    """A callable's dotted name; text stays."""
    if isinstance(value, str):
        return value
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', repr(value))}"


def check_interpolation(text: str, key: str, place: str) -> None:
    """Raise if text makes values by a resolver of omegaconf, which could make calls that nobody sees before.

    Raises:
        UserError: naming the key.
    """
    reduced, before = text, None
    while reduced != before:
        before, reduced = reduced, _PLAIN.sub("x", reduced)
    if "${" in reduced:
        raise UserError(
            f"{place}: {key}: {text[:80]!r} is not the place of another value, such as ${{train.max_iter}}; write what "
            "it stands for"
        )


def _values(node: Any, path: str, place: str | None, known: frozenset[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """All values that are not containers, with their keys; ``_target_`` after interpolation, others as they stand.

    With a ``place``, interpolations that are not ``known`` are checked on the way.
    """
    if OmegaConf.is_config(node):
        if node._is_none() or node._is_missing():
            return
        if node._is_interpolation():
            text = str(node._value())
            if place is not None and text not in known:
                check_interpolation(text, path, place)
            yield path, text
            return
        items = node.items_ex(resolve=False) if OmegaConf.is_dict(node) else enumerate(node._iter_ex(resolve=False))
        for key, value in items:
            inner = f"{path}.{key}" if path else str(key)
            if isinstance(value, str) and "${" in value and place is not None and value not in known:
                check_interpolation(value, inner, place)
            if key == _TARGET and isinstance(value, str) and "${" in value:
                value = _resolved(node, inner, place)
            yield from _values(value, inner, place, known)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _values(value, f"{path}.{key}" if path else str(key), place, known)
    elif isinstance(node, (list, tuple, set, frozenset)):
        for index, value in enumerate(node):
            yield from _values(value, f"{path}.{index}", place, known)
    else:
        yield path, node


def _resolved(node: Any, path: str, place: str | None) -> Any:
    try:
        value = node[_TARGET]
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        if place is None:
            return None
        raise UserError(f"{place}: {path} cannot be told: {str(error).splitlines()[0]}") from error
    if OmegaConf.is_config(value):
        if place is None:
            return None
        raise UserError(f"{place}: {path} is no name of a class or function")
    return value
