"""Which classes and functions a config that is read as data may name.

A config that is Python is a program, and may call what it likes. A YAML file is data: what it calls has to be made for
building models, reading data, evaluating or training, which cannot run a command, load code or unpickle.
"""

from __future__ import annotations

import builtins
import functools
import types
from collections.abc import Callable
from typing import Any

from ..utils.registry import locate as locate_lite
from ..utils.registry import to_public_name
from ..utils.trust import CHECKPOINTS, PATHS, TRUST_VARIABLE, trusted

HARMLESS = (
    "detectron2.data",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "detectron2.structures",
    "elsa_det.data",
    "elsa_det.engine.layer_decay",
    "elsa_det.engine.optimizer_params",
    "elsa_det.evaluation",
    "elsa_det.layers",
    "elsa_det.modeling",
    "fvcore.common.param_scheduler",
    "fvcore.nn",
    "torch.nn",
    "torch.optim",
    "torchvision.ops",
    "torchvision.transforms",
)
"""Packages whose own functions and classes may be named; what they have merely imported may not."""

SAFE_BUILTINS = frozenset({
    *("bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "dict", "set", "frozenset", "range", "slice"),
    *("abs", "len", "max", "min", "round", "sorted", "sum"),
})  # fmt: skip

_TORCH_OPERATORS = ("torch", "torch._C._nn", "torch._C._VariableFunctions")
_NO_OPERATORS = {"from_file"}  # maps a file into memory, and makes it if asked to


class NotTrusted(ValueError):
    """A config names something that it may not name; the message is the reason and the remedy."""


def find_trusted(name: str, locate: Callable[[str], Any] = locate_lite) -> Any:
    """The class or function with this dotted name. What is refused by its name is not imported.

    Args:
        name: such as ``torch.nn.Conv2d``.
        locate: from a name to its object, or an ImportError.

    Raises:
        NotTrusted: it is not one that configs may name.
        ImportError: nothing has this name.
    """
    module, _, attribute = to_public_name(name).rpartition(".")
    if module in ("", "builtins"):
        if attribute not in SAFE_BUILTINS:
            raise NotTrusted(f"{name!r}: this builtin is not allowed in a config")
        return getattr(builtins, attribute)
    by_user = _below(name, _by_user())
    if not (by_user or _below(name, HARMLESS) or module in _TORCH_OPERATORS):
        raise NotTrusted(_not_listed(name))
    if not by_user and module not in _TORCH_OPERATORS and any(part.startswith("_") for part in name.split(".")):
        raise NotTrusted(f"{name!r} is private")
    found = locate(name)
    check_trusted(found, name)
    return found


def check_trusted(found: Any, name: str | None = None) -> None:
    """Raise unless a callable object is one that configs may hold.

    Raises:
        NotTrusted: it is none.
    """
    if isinstance(found, functools.partial):
        for part in (found.func, *found.args, *found.keywords.values()):
            if callable(part):
                check_trusted(part)
        return
    home, own = getattr(found, "__module__", None), getattr(found, "__qualname__", type(found).__qualname__)
    name = name or f"{home}.{own}"
    if isinstance(found, types.ModuleType) or not callable(found):
        raise NotTrusted(f"{name!r} is not a function or class")
    if home == "builtins" and own in SAFE_BUILTINS:
        return
    if _is_torch_operator(found):
        return
    if not isinstance(home, str) or not (_below(home, HARMLESS) or _below(home, _by_user())):
        raise NotTrusted(_not_listed(f"{home}.{own}" if home else name))


def _is_torch_operator(found: Any) -> bool:
    if not isinstance(found, types.BuiltinFunctionType) or found.__name__ in _NO_OPERATORS:
        return False
    home = getattr(found, "__module__", None)
    return home == "torch._C._nn" or "_VariableFunctionsClass" in found.__qualname__


def _below(name: str, packages: Any) -> bool:
    name = to_public_name(name)
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _by_user() -> frozenset[str]:
    return trusted() - {CHECKPOINTS, PATHS}


def _not_listed(name: str) -> str:
    package = name.partition(".")[0]
    return (
        f"{name!r} is not among what a config file of data may call: it could run any code. If you trust the file, "
        f"allow the package by the environment variable {TRUST_VARIABLE}={package}"
    )
