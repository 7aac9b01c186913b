"""The process: versions and random seeds."""

from __future__ import annotations

import logging
import os
import random
import time

import numpy as np
import torch

__all__ = ["seed_all_rng"]

TORCH_VERSION = tuple(int(number) for number in torch.__version__.split(".")[:2])
"""Major and minor version of PyTorch."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of Python, numpy and torch (every device).

    Args:
        seed: in [0, 2**32). None picks one that differs between processes and calls, and logs it.
    """
    if seed is None:
        seed = (os.getpid() + time.time_ns() // 1000 + int.from_bytes(os.urandom(2), "big")) % 2**32
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators included
    os.environ["PYTHONHASHSEED"] = str(seed)  # for processes started from here
