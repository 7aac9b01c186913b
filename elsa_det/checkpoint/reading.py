"""Reading checkpoint files without running code from them."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .pickles import read_arrays

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
    core = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "f2", "i4", "i8", "u1", "b1")]
    named: list[Any] = [
        (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_no_attribute, "builtins.getattr"),
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named += [(core._reconstruct, f"{module}._reconstruct"), (core.scalar, f"{module}.scalar")]
    return [argparse.Namespace, np.ndarray, np.dtype, *dtypes, *named]


def read_checkpoint(path: str | Path, *, allow_code: bool = False) -> Any:
    """Read a ``.pth``/``.pt``, ``.safetensors`` or (Detectron2's model zoo) ``.pkl`` file to the CPU.

    Only tensors, plain containers and a few named harmless classes are read; anything else in a file is refused.

    Args:
        path: the file.
        allow_code: unpickle without restriction, which runs any code the file holds; only for files you trust.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, no checkpoint, or holds something else than data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}): download or copy it again"
            ) from error
    try:
        if path.suffix == ".pkl":
            return read_arrays(path, allow_code=allow_code)
        if allow_code:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_harmless_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if refused is None:
            raise CheckpointError(f"{path} is not a checkpoint that can be read: {_first_line(error)}") from error
        raise CheckpointError(
            f"{path} holds an object of {refused.group(1)}, and reading that could run code from the file. "
            "If you trust its source, read it with allow_code=True and save its weights alone."
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, AttributeError, TypeError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size:,} bytes) is truncated or not a PyTorch checkpoint ({_first_line(error)}): "
            "download or copy it again"
        ) from error


def _first_line(error: Exception) -> str:
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
        tensors = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    held = f"the keys {list(published)[:8]}" if isinstance(published, Mapping) else f"a {type(published).__name__}"
    raise CheckpointError(
        f"no weights found in the checkpoint: it holds {held}, expected one of {_WRAPPERS} or tensors"
    )
