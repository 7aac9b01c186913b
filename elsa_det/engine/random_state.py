"""Random numbers: kept while something else is done, kept in checkpoints, and drawn anew for each sample."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """What is done within it does not change the random numbers that come after it, of Python, NumPy and torch.

    On CUDA those of the current device are meant.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if _on_cuda() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def random_numbers_of(*seed: int, kept: bool = True) -> Iterator[None]:
    """Within it, the random numbers of Python, NumPy and torch on the CPU are those of a seed.

    Args:
        seed: numbers of at least 0, which together are the seed.
        kept: whether those that come after it are as if it had not been; otherwise they go on from the seed.
    """
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if kept else None
    words = np.random.SeedSequence(seed).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    torch.default_generator.manual_seed(int(words[3]))  # torch.manual_seed would seed CUDA as well
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def random_state() -> dict[str, Any]:
    """Where the random numbers of this process are: Python's, NumPy's, torch's, and those of its CUDA device.

    Returns:
        Numbers, strings, lists and tensors, as checkpoints hold them.
    """
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if _on_cuda() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go back to where :func:`random_state` was; without CUDA, or where it was without, that of CUDA stays."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and _on_cuda():
        torch.cuda.set_rng_state(state["cuda"])


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
