"""From names to objects and back: registries, dotted names, and Detectron2's names for d2lite's objects."""

from __future__ import annotations

import builtins
import importlib
import itertools
from types import ModuleType
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]

_HERE = __name__.rsplit(".", 2)[0]  # elsa_det.d2lite
_PUBLIC = "detectron2"  # what _HERE is called in files


def to_lite_name(name: str) -> str:
    """``detectron2.a.b`` becomes ``elsa_det.d2lite.a.b``; other names stay."""
    return _HERE + name[len(_PUBLIC) :] if name == _PUBLIC or name.startswith(_PUBLIC + ".") else name


def to_public_name(name: str) -> str:
    """``elsa_det.d2lite.a.b`` becomes ``detectron2.a.b``, the name that is written into files; other names stay."""
    return _PUBLIC + name[len(_HERE) :] if name == _HERE or name.startswith(_HERE + ".") else name


def missing_in_lite(name: str) -> ImportError:
    """The error for a ``detectron2.…`` name that d2lite does not have."""
    return ImportError(
        f"'{name}' is not part of d2lite, the embedded stand-in for Detectron2. The real Detectron2 has it "
        f"(if the name is spelt right): install Detectron2 and leave ELSA_DET_D2 unset.",
        name=name,
    )


def import_submodule(name: str) -> ModuleType | None:
    """The module called ``name``, or None if there is none. An error inside an existing module is raised."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return None
        raise


def locate(name: str, *, lite: bool = True) -> Any:
    """The object with this dotted name, such as ``torch.nn.Conv2d``.

    With ``lite``, ``detectron2.…`` names give d2lite's objects.

    Attributes come before submodules of the same name, and a name without a dot may be a builtin.

    Raises:
        ImportError: nothing has this name.
    """
    parts = (to_lite_name(name) if lite else name).split(".")
    found: Any = import_submodule(parts[0]) if parts[0] else None
    if found is None and len(parts) == 1:
        found = getattr(builtins, name, None)
    for end in range(2, len(parts) + 1):
        if found is None:
            break
        parent, found = found, getattr(found, parts[end - 1], None)
        if found is None and isinstance(parent, ModuleType):
            found = import_submodule(".".join(parts[:end]))
    if found is None:
        if lite and to_lite_name(name) != name:
            raise missing_in_lite(name)
        raise ImportError(f"There is no object called '{name}': no such module, or it has no such attribute.")
    return found


def _convert_target_to_string(t: Any) -> str:
    """The shortest dotted name under which :func:`locate` finds ``t``, which needs a module and a qualified name.

    The name is looked for in the parent packages of the module that defines ``t``, outermost first. d2lite's own
    objects get the names they have in Detectron2.

    Raises:
        AttributeError: ``t`` has no ``__module__`` or ``__qualname__``.
    """
    module, qualname = to_public_name(t.__module__), t.__qualname__
    if "_VariableFunctionsClass" in qualname:  # torch.sigmoid says that it is in there, where nobody finds it
        in_full = f"{module}.{qualname.rpartition('.')[2]}"
    else:
        in_full = f"{module}.{qualname}"
    *parents, _ = itertools.accumulate(module.split("."), "{}.{}".format)
    return next((name for package in parents if leads_to(name := f"{package}.{qualname}", t)), in_full)


def leads_to(name: str, target: Any) -> bool:
    """Whether :func:`locate` finds just this object."""
    try:
        return locate(name) is target
    except ImportError:
        return False
