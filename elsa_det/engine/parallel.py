"""A model in several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..d2 import create_ddp_model


def data_parallel(model: nn.Module, **options: Any) -> nn.Module:
    """``create_ddp_model`` for a model where it is: on the CPU, or on the GPU that this process has chosen.

    Detectron2's takes the GPU of the process's number on its machine, also for models on the CPU.

    Args:
        model: on its device already.
        options: of ``create_ddp_model`` and torch's ``DistributedDataParallel``.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    options.setdefault("device_ids", None if on_cpu else [torch.cuda.current_device()])
    return create_ddp_model(model, **options)
