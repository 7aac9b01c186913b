"""What a bug report needs to know about the machine and the libraries."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections import defaultdict

import torch
from tabulate import tabulate

from .. import __version__

__all__ = ["collect_env_info"]

_LIBRARIES = ("torchvision", "fvcore", "iopath", "omegaconf", "hydra", "pycocotools", "cv2", "PIL")


def _version_and_place(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken library is what we are here to report
        return f"failed to import: {type(error).__name__}: {error}"
    place = f" @{os.path.dirname(module.__file__)}" if module.__file__ else ""
    return f"{getattr(module, '__version__', 'unknown version')}{place}"


def _gpus() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() == False")]
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for index in range(torch.cuda.device_count()):
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        by_name[f"{torch.cuda.get_device_name(index)} (arch={capability})"].append(str(index))
    return [("GPU available", "Yes"), *((f"GPU {','.join(ids)}", name) for name, ids in by_name.items())]


def collect_env_info() -> str:
    """A table of versions, places and devices, and how PyTorch was built; several lines of text."""
    from torch.utils.cpp_extension import CUDA_HOME

    rows = [
        ("sys.platform", sys.platform),
        ("Platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("numpy", _version_and_place("numpy")),
        ("d2lite (stands in for detectron2)", f"{__version__} @{os.path.dirname(os.path.dirname(__file__))}"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", str(torch.version.debug)),
        ("PyTorch's CUDA", str(torch.version.cuda)),
        *_gpus(),
        ("CUDA_HOME", str(CUDA_HOME)),
        ("TORCH_CUDA_ARCH_LIST", os.environ.get("TORCH_CUDA_ARCH_LIST", "not set")),
        *((name, _version_and_place(name)) for name in _LIBRARIES),
    ]
    return f"{tabulate(rows)}\n{torch.__config__.show()}"
