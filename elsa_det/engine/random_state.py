"""Random numbers that come out as if something in between had not been done."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """What is done within it does not change the random numbers that come after it, of Python, NumPy and torch.

    On CUDA those of the current device are meant.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
