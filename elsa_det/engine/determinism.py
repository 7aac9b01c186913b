"""Runs that can be repeated: the same seed, the same numbers."""

from __future__ import annotations

import os
from typing import Any

import torch
from omegaconf import OmegaConf

from ..errors import UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def check_deterministic(cfg: Any) -> bool:
    """Whether ``train.deterministic`` is on.

    Raises:
        UserError: it is on without a seed, or beside a search for the fastest convolution.
    """
    asked = OmegaConf.select(cfg, "train.deterministic", default=False)
    if not isinstance(asked, bool):
        raise UserError(f"train.deterministic={asked!r} must be True or False")
    if not asked:
        return False
    seed = cfg.train.get("seed", -1)
    if seed is None or seed < 0:
        raise UserError(
            f"train.deterministic=True with train.seed={seed}, which draws another seed each time: set train.seed=0 or "
            "more"
        )
    if cfg.train.get("cudnn_benchmark", False):
        raise UserError(
            "train.deterministic=True and train.cudnn_benchmark=True contradict each other: the search takes what is "
            "fastest at the time. Turn one of them off"
        )
    return True


def make_deterministic(device: str) -> list[str]:
    """Let PyTorch take deterministic algorithms, in this process from now on.

    Where it has none it goes on with a warning that names the operation, once for each: detectors need some of them.

    Args:
        device: that is trained on.

    Returns:
        Lines for the log.
    """
    # cuBLAS reads this when it is first used; a value of the user's own stays.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if torch.device(device).type == "cpu":
        return ["Deterministic: on the CPU the same seed, threads and processes give the same numbers bit for bit"]
    return [
        "Deterministic: where PyTorch has deterministic algorithms. It has none on CUDA for the backward of ROIAlign "
        "and of bilinear resizing, among others: each is named in a warning when it is met, and with it runs differ in "
        f"their last digits. {_WORKSPACE}={os.environ[_WORKSPACE]}"
    ]
