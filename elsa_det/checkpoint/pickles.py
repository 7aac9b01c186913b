"""Reading Detectron2's ``.pkl`` model files, which are pickled arrays, without running code from them."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    from numpy._core import multiarray, numeric
except ImportError:  # numpy 1
    from numpy.core import multiarray, numeric  # type: ignore[no-redef]


def _encode(text: str, encoding: str) -> bytes:
    """How old pickles spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r} are not part of arrays")
    return text.encode(encoding)


#: what arrays and plain containers are made of; numpy 2 writes numpy._core for what was numpy.core
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = multiarray._reconstruct  # type: ignore[attr-defined]
    _ALLOWED[f"{_core}.multiarray", "scalar"] = multiarray.scalar  # type: ignore[attr-defined]
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]


class _ArrayUnpickler(pickle.Unpickler):
    """Detectron2's own reader unpickles anything, and so runs whatever code a file holds; this one does not."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not part of arrays")
        return _ALLOWED[module, name]


def read_arrays(path: Path, *, allow_code: bool = False) -> Any:
    """What a pickle of arrays and plain containers holds, arrays as tensors.

    Args:
        path: the file.
        allow_code: unpickle without restriction, which runs any code the file holds.

    Raises:
        pickle.UnpicklingError: it holds anything else.
    """
    unpickler = pickle.Unpickler if allow_code else _ArrayUnpickler
    with path.open("rb") as file:
        return _as_tensors(unpickler(file, encoding="latin1").load())


def _as_tensors(held: Any) -> Any:
    if isinstance(held, dict):
        return {key: _as_tensors(value) for key, value in held.items()}
    if isinstance(held, np.ndarray) and held.dtype.kind in "fiub":
        return torch.from_numpy(held.copy())
    return held
