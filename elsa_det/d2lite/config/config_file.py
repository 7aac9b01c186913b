"""Running a config file: its relative imports are other config files, and its ``detectron2`` is d2lite."""

from __future__ import annotations

import builtins
import os
from types import ModuleType
from typing import Any

from omegaconf import DictConfig

from ..utils.file_io import PathManager
from ..utils.registry import import_submodule, missing_in_lite, to_lite_name

_RELATIVE_IMPORT_RULE = "Within a config file, a relative import can only import names from other config files."


def as_config(value: Any) -> Any:
    """A dict as DictConfig; anything else as it is."""
    return DictConfig(value, flags={"allow_objects": True}) if isinstance(value, dict) else value


def run_config_file(path: str) -> dict[str, Any]:
    """The names that a config file defines, after running it.

    Nothing is cached: a file that is imported twice runs twice, so that what one reader changes no other sees.

    Raises:
        FileNotFoundError: there is no such file.
        SyntaxError: it is not Python.
        ImportError: it imports what is not there; also a name of Detectron2 that d2lite lacks.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"There is no config file '{path}' (working directory: {os.getcwd()}).")
    return _run(path, ())


def _run(path: str, importers: tuple[str, ...]) -> dict[str, Any]:
    with PathManager.open(path, "rb") as file:
        # the path shows in tracebacks, and load_rel finds it
        code = compile(file.read(), path, "exec", dont_inherit=True)
    importer = _Importer(path, importers)
    # Python takes __import__ from the namespace's own builtins, so that only this file's imports are redirected.
    namespace: dict[str, Any] = {
        "__name__": f"{__name__}.{os.path.basename(path).removesuffix('.py')}",
        "__file__": path,
        "__builtins__": {**vars(builtins), "__import__": importer},
    }
    try:
        exec(code, namespace)
    finally:
        importer.is_active = False
    return namespace


class _Importer:
    """``__import__`` for one config file while it runs."""

    def __init__(self, path: str, importers: tuple[str, ...]) -> None:
        """``importers``: the config files that led to this one."""
        self._path = path
        self._chain = (*importers, path)
        self.is_active = True

    def __call__(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        if self.is_active and level > 0:
            return self._import_config(name, fromlist or (), level)
        if self.is_active and to_lite_name(name) != name:
            return _import_lite(name, fromlist or ())
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _import_config(self, name: str, fromlist: tuple[str, ...], level: int) -> ModuleType:
        shown = f"from {'.' * level}{name} import {', '.join(fromlist)}"
        folder = os.path.dirname(self._path)
        for _ in range(level - 1):
            is_named = os.path.basename(folder) not in ("", ".", "..")
            folder = os.path.dirname(folder) if is_named else os.path.join(folder, "..")
        stem = os.path.join(folder, *name.split("."))
        path = stem + ".py"
        if not name or (not PathManager.isfile(path) and PathManager.isdir(stem)):
            raise ImportError(f"{self._path}: '{shown}' would import a folder, {stem}. {_RELATIVE_IMPORT_RULE}")
        if not PathManager.isfile(path):
            raise ImportError(f"{self._path}: cannot run '{shown}', because {path} does not exist.")
        if path in self._chain:
            raise ImportError(f"Config files import each other in a circle: {' -> '.join([*self._chain, path])}")
        namespace = _run(path, self._chain)
        module = ModuleType(namespace["__name__"])
        module.__dict__.update(namespace)
        for each in fromlist:
            if each not in namespace:
                raise ImportError(f"{self._path}: cannot run '{shown}', because {path} does not define '{each}'.")
            setattr(module, each, as_config(namespace[each]))
        return module


def _import_lite(name: str, fromlist: tuple[str, ...]) -> ModuleType:
    """d2lite's module for ``detectron2…``, as ``__import__`` returns it."""
    module = import_submodule(to_lite_name(name))
    if module is None:
        raise missing_in_lite(name)
    for each in fromlist:
        if each != "*" and not hasattr(module, each) and import_submodule(f"{module.__name__}.{each}") is None:
            raise missing_in_lite(f"{name}.{each}")
    if fromlist:
        return module
    root = import_submodule(to_lite_name(name.partition(".")[0]))
    assert root is not None
    return root
