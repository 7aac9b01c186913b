"""Reading pickles of numpy arrays and plain containers, and of nothing else: no code runs from such a file.

NumPy's own functions for this trust what they are given: a few bytes of a file make an array that fills the memory, or
a dtype whose values are taken for pointers. Here stand-ins take their place, which check, and become arrays at the end.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import re
import struct
from typing import IO, Any

import numpy as np

_NUMBERS = re.compile(r"[fiubc](?:1|2|4|8|16)|\?")


class RefusedGlobal(pickle.UnpicklingError):
    """A pickle holds something else than data.

    Attributes:
        name: Of the class or function.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it holds '{name}', but only numpy arrays and plain containers are read")
        self.name = name


class _Dtype:
    """``numpy.dtype`` of numbers."""

    def __init__(self, kind: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(kind, str) or not _NUMBERS.fullmatch(kind):
            raise pickle.UnpicklingError(f"arrays of the type {str(kind)[:40]!r} are not read, only numbers are")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
            raise pickle.UnpicklingError("an array has a type that is not a number")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """``numpy.ndarray``, which a pickle makes empty and then fills."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None:
        raise pickle.UnpicklingError("an array is made in another way than numpy writes it")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array has no shape, type and values")
        _, shape, dtype, by_columns, values = state
        self.array = _filled(values, dtype, shape, "F" if by_columns else "C")


def _filled(values: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(values, str):  # Python 2's bytes
        values = values.encode("latin1")
    sizes_fit = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not sizes_fit or not isinstance(dtype, _Dtype) or not isinstance(values, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array has no shape, type and values")
    if math.prod(shape) * dtype.dtype.itemsize != len(values):
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(values)} bytes")
    return np.frombuffer(bytearray(values), dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array is of a kind of its own")
    return _Array.__new__(_Array)


def _frombuffer(values: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array.__new__(_Array)
    made.array = _filled(values, dtype, shape, "F" if order == "F" else "C")
    return made


def _scalar(dtype: Any, value: Any = None) -> Any:
    return _filled(value, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 spell bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r} are not expected in an array file")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 spells bytes of which there are none."""
    return b""


NUMPY_GLOBALS: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    # both spellings: numpy 2 renamed numpy.core, and writes the new one
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
"""What pickled arrays name, and what is called instead; :func:`with_arrays` ends it."""


def with_arrays(held: Any) -> Any:
    """Plain containers with arrays in place of the stand-ins of :data:`NUMPY_GLOBALS`; what is shared stays shared.

    Raises:
        RecursionError: it is nested too deeply, or contains itself.
        AttributeError: an array was never filled.
    """
    made: dict[int, Any] = {}  # a container within a container, both twice, thirty times, are few bytes of a file

    def convert(held: Any) -> Any:
        if isinstance(held, _Array):
            return held.array
        if isinstance(held, _Dtype):
            return held.dtype
        kind = type(held)
        if kind not in (dict, collections.OrderedDict, list, tuple):
            return held
        if id(held) not in made:
            if kind is collections.OrderedDict:
                for key, value in held.items():
                    held[key] = convert(value)
                made[id(held)] = held
            elif kind is dict:
                made[id(held)] = {key: convert(value) for key, value in held.items()}
            else:
                made[id(held)] = kind(convert(value) for value in held)
        return made[id(held)]

    return convert(held)


# Python's own unpickler and not C's, which makes room for as many objects as a few bytes of a file tell it to.
class _ArraysOnly(pickle._Unpickler):  # type: ignore[name-defined, misc]
    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        if full not in NUMPY_GLOBALS:
            raise RefusedGlobal(full)
        return NUMPY_GLOBALS[full]

    def load_build(self) -> None:
        """Set the state of what has one; functions and classes keep theirs."""
        state, made = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(made, (_Array, _Dtype)):
            made.__setstate__(state)
        elif type(made) is collections.OrderedDict and isinstance(state, dict):
            made.__dict__.update(state)
        else:
            raise pickle.UnpicklingError(f"a {type(made).__name__} has a state of its own")

    def load_bytearray8(self) -> None:
        """Read as many bytes as there are, instead of making room for as many as are said to be there."""
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        values = self.read(size)  # type: ignore[attr-defined]
        if len(values) < size:
            raise EOFError("the file ends within an array")
        self.append(bytearray(values))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[assignment]
    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def unpickle_arrays(file: IO[bytes]) -> Any:
    """The contents of a pickle made of arrays, numbers, strings, lists, tuples, sets and dicts.

    Args:
        file: opened for reading; Python 2's pickles are read as Latin-1.

    Raises:
        pickle.UnpicklingError: it is no pickle, or holds anything else (:class:`RefusedGlobal`).
    """
    try:
        # In memory, where reading more than there is makes no room for it.
        return with_arrays(_ArraysOnly(io.BytesIO(file.read()), encoding="latin1").load())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def load_arrays(file: IO[bytes], name: str) -> Any:
    """:func:`unpickle_arrays` of a checkpoint.

    Args:
        file: opened for reading.
        name: what to call the file in errors.

    Raises:
        ValueError: it is no pickle, or holds anything else.
    """
    try:
        return unpickle_arrays(file)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"Cannot read checkpoint {name}: {error}. If you trust the file, read it with the program that wrote it "
            "and save {'model': state_dict} with torch.save."
        ) from error
