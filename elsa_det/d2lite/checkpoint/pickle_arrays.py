"""Reading pickles of numpy arrays and plain containers, and of nothing else: no code runs from such a file."""

from __future__ import annotations

import collections
import pickle
from typing import IO, Any

import numpy as np

try:
    from numpy._core.multiarray import _reconstruct, scalar
    from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
except ImportError:  # numpy 1
    from numpy.core.multiarray import _reconstruct, scalar  # type: ignore[no-redef]
    from numpy.core.numeric import _frombuffer  # type: ignore[no-redef]


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r} are not expected in an array file")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    # both spellings: numpy 2 renamed numpy.core, and writes the new one
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it holds '{module}.{name}', but only numpy arrays and plain containers are read"
            ) from None


def load_arrays(file: IO[bytes], name: str) -> Any:
    """The contents of a pickle made of arrays, numbers, strings, lists, tuples, sets and dicts.

    Args:
        file: opened for reading; Python 2's pickles are read as Latin-1.
        name: what to call the file in errors.

    Raises:
        ValueError: it is no pickle, or holds anything else.
    """
    try:
        return _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f"Cannot read checkpoint {name}: {error}. If you trust the file, read it with the program that wrote it "
            "and save {'model': state_dict} with torch.save."
        ) from error
