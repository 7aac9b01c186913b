"""Configs as Python-like text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..utils.registry import _convert_target_to_string, to_public_name


def to_python(config: Any, prefix: str) -> str:
    """``a.b = f(x=1)`` lines for plain containers; see ``LazyConfig.to_py``."""
    is_call = not isinstance(config, Mapping) or "_target_" in config
    text = prefix + _expression(config) if is_call else "\n".join(_assignments(config, prefix))
    try:
        import black
    except ImportError:  # only looks
        return text
    try:
        return black.format_str(text, mode=black.Mode())
    except black.InvalidInput:  # a name that Python does not allow
        return text


def _assignments(config: Mapping, prefix: str) -> Iterator[str]:
    for key, value in sorted(config.items()):
        if isinstance(value, Mapping) and "_target_" not in value:
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {_expression(value)}"


def _expression(value: Any) -> str:
    if isinstance(value, Mapping) and "_target_" in value:
        target = value["_target_"]
        name = to_public_name(target) if isinstance(target, str) else _convert_target_to_string(target)
        arguments = (f"{key}={_expression(each)}" for key, each in sorted(value.items()) if key != "_target_")
        return f"{name}({', '.join(arguments)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_expression(each)}" for key, each in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_expression, value)) + "]"
    return repr(value)
