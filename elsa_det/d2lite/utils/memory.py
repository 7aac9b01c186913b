"""Second chances after CUDA runs out of memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


def _on_cpu(value: Any) -> Any:
    return value.to("cpu") if getattr(getattr(value, "device", None), "type", None) == "cuda" else value


def retry_if_cuda_oom(func: Callable) -> Callable:
    """``func``, tried again with CUDA's cache emptied and then on the CPU when memory runs out.

    ``func`` is stateless and takes tensors (or things with ``device`` and ``to``); its last result may be on the CPU.
    """

    @functools.wraps(func)
    def with_retries(*args: Any, **kwargs: Any) -> Any:
        for _ in range(2):
            try:
                return func(*args, **kwargs)
            except torch.OutOfMemoryError:
                pass  # cleaned up below, when the exception no longer holds the frames and their tensors
            torch.cuda.empty_cache()
        logging.getLogger(__name__).info("CUDA is out of memory: %s goes on the CPU", getattr(func, "__name__", func))
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in kwargs.items()})

    return with_retries
