"""Clipping of gradients, and a record of how large they are."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..d2 import HookBase


class ClipGradients(HookBase):
    """Scales all gradients down together where their common norm is above ``max_norm``; records it as ``grad_norm``.

    With a gradient scaler, gradients are unscaled first. A norm that is infinite or NaN is left to the scaler, which
    skips the step; without one it ends training before it reaches the weights.

    Args:
        optimizer: over the parameters whose gradients are meant.
        max_norm: largest Euclidean norm; infinity clips nothing and records only.
    """

    def __init__(self, optimizer: Optimizer, max_norm: float) -> None:
        self.max_norm = float(max_norm)
        self.norm: float | None = None  # of the latest backward, before clipping
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Not in after_backward: a loss that is not finite is noticed between the two, and says more.
        optimizer.register_step_pre_hook(self._refuse_broken)

    def _scaler(self) -> Any:
        return getattr(self.trainer, "grad_scaler", None)

    def after_backward(self) -> None:
        scaler = self._scaler()
        if scaler is not None:
            scaler.unscale_(self.trainer.optimizer)
        self.norm = float(nn.utils.clip_grad_norm_(self._parameters, self.max_norm))
        if math.isfinite(self.norm):
            self.trainer.storage.put_scalar("grad_norm", self.norm)

    def _refuse_broken(self, *_: Any) -> None:
        if self.norm is not None and not math.isfinite(self.norm) and self._scaler() is None:
            raise FloatingPointError(
                f"the norm of the gradients is {self.norm} at iteration {self.trainer.iter}, though the losses are "
                "finite; the weights were not changed"
            )
