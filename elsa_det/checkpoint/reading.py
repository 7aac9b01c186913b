"""Reading checkpoint files without running code from them."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..d2 import (
    CHECKPOINTS,
    NUMPY_GLOBALS,
    TRUST_VARIABLE,
    RefusedGlobal,
    trusted,
    unpickle_arrays,
    with_arrays,
)
from ..errors import UserError

logger = logging.getLogger(__name__)

#: wrappers under which published files keep their weights, the preferred first
_WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model")


class CheckpointError(UserError):
    """A checkpoint file cannot be read, or does not fit the model."""


class _Inert:
    """Stands in for a class of another framework: takes whatever its pickle holds, does nothing with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _no_attribute(holder: Any, name: str) -> None:
    """Stands in for ``getattr``, which files of mmengine use to name methods of :class:`_Inert` classes."""


def _harmless_globals() -> list[Any]:
    """What published files hold beside tensors: arguments of timm's trainer, numbers, logs of mmengine."""
    own: list[Any] = [
        (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_no_attribute, "builtins.getattr"),
    ]
    return [argparse.Namespace, *own, *((stand_in, name) for name, stand_in in NUMPY_GLOBALS.items())]


def read_checkpoint(path: str | Path, *, allow_code: bool | None = None) -> Any:
    """Read a ``.pth``/``.pt``, ``.safetensors`` or (Detectron2's model zoo) ``.pkl`` file to the CPU.

    Only tensors, plain containers and a few named harmless classes are read; anything else in a file is refused.

    Args:
        path: the file.
        allow_code: unpickle without restriction, which runs any code the file holds; only for files you trust. By
            default as the environment variable ``ELSA_DET_TRUST`` says.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, no checkpoint, or holds something else than data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if CHECKPOINTS in trusted() if allow_code is None else allow_code:
        logger.warning("%s is read without restriction: code in it runs", path)
        return _read_trusted(path)
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return _as_tensors(unpickle_arrays(file))
        _check_archive(path)
        with torch.serialization.safe_globals(_harmless_globals()):
            return with_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        name = error.name if isinstance(error, RefusedGlobal) else refused.group(1) if refused else None
        if name is None:
            raise CheckpointError(f"{path} is not a checkpoint that can be read: {_first_line(error)}") from error
        raise CheckpointError(
            f"{path} holds an object of {name}, and reading that could run code from the file. If you trust its "
            f"source, read it with {TRUST_VARIABLE}={CHECKPOINTS} in the environment (in a program: "
            "read_checkpoint(path, allow_code=True)) and save its weights alone."
        ) from error
    except (*_DAMAGED, MemoryError) as error:
        raise _damaged(path, error) from error


#: what torch and pickle raise for files that are cut off, altered or no checkpoints
_DAMAGED = (RuntimeError, EOFError, OSError, LookupError, ValueError, AttributeError, TypeError, AssertionError,
            OverflowError, RecursionError, NotImplementedError, zipfile.BadZipFile, struct.error)  # fmt: skip


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size:,} bytes) is truncated or not a PyTorch checkpoint ({_first_line(error)}): "
        "download or copy it again"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *_DAMAGED, MemoryError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): download or copy it again"
        ) from error


def _read_trusted(path: Path) -> Any:
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return _as_tensors(pickle.load(file, encoding="latin1"))
        return torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, ImportError, *_DAMAGED) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Raise if an archive would unfold to more than its file: PyTorch never compresses what it saves.

    Raises:
        CheckpointError: it would.
        zipfile.BadZipFile, ValueError, NotImplementedError: its directory is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if unfolded > size:
        raise CheckpointError(
            f"{path} has {size:,} bytes and would unfold to {unfolded:,}: PyTorch does not write such files"
        )


def _as_tensors(held: Any, levels: int = 3) -> Any:
    """Dicts with tensors in place of arrays, a few levels down: no file of weights has more."""
    if isinstance(held, dict) and levels:
        return {key: _as_tensors(value, levels - 1) for key, value in held.items()}
    if isinstance(held, np.ndarray) and held.dtype.kind in "fiub":
        native = held.astype(held.dtype.newbyteorder("="))
        return torch.from_numpy(native) if native.dtype.name in _OF_TORCH else held
    return held


_OF_TORCH = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def unwrap_state_dict(published: Any) -> dict[str, Tensor]:
    """The weights inside a published file: out of its wrapper, without ``module.`` prefixes.

    Where a file holds both the weights and their moving average, the average is taken: timm's ``state_dict_ema``, and
    mmengine's ``state_dict``, which is the average where an ``ema_state_dict`` (then the raw weights) stands beside it.

    Raises:
        CheckpointError: no mapping of names to tensors is found.
    """
    weights = published
    if isinstance(published, Mapping):
        weights = next((published[key] for key in _WRAPPERS if isinstance(published.get(key), Mapping)), published)
    if isinstance(weights, Mapping):
        odd = [key for key, value in weights.items() if isinstance(value, Tensor) and not isinstance(key, str)]
        if odd:
            raise CheckpointError(f"the checkpoint's weights have names that are no text, such as {str(odd[0])[:80]}")
        tensors = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    held = f"the keys {list(published)[:8]}" if isinstance(published, Mapping) else f"a {type(published).__name__}"
    raise CheckpointError(
        f"no weights found in the checkpoint: it holds {held}, expected one of {_WRAPPERS} or tensors"
    )
