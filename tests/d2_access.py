"""Provider-neutral access for tests: the module of Detectron2, or its counterpart in d2lite."""

from __future__ import annotations

import importlib
from types import ModuleType

from elsa_det import d2


def d2_module(path: str) -> ModuleType:
    """``d2_module("modeling.sampling")`` is that module of whichever provider runs."""
    root = "detectron2" if d2.PROVIDER == d2.UPSTREAM else "elsa_det.d2lite"
    return importlib.import_module(f"{root}.{path}")
