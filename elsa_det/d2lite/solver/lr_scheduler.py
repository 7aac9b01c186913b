"""Learning rates as initial rate times a schedule over the fraction of training that is done."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule with a warmup before it."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """
        Args:
            scheduler: the schedule after the warmup.
            warmup_factor: where warmup starts, as a fraction of ``scheduler``'s first value.
            warmup_length: its share of all training, in [0, 1].
            warmup_method: ``"linear"`` rises to ``scheduler``'s value at the end of warmup, ``"constant"`` stays.
            rescale_interval: whether ``scheduler`` is squeezed into the time after warmup, rather than joined in its
                course.

        Raises:
            ValueError: unknown ``warmup_method``.
        """
        first = warmup_factor * scheduler(0.0)
        warmup: ParamScheduler
        if warmup_method == "linear":
            warmup = LinearParamScheduler(first, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(first)
        else:
            raise ValueError(f"warmup_method={warmup_method!r} is not understood: use 'linear' or 'constant'.")
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Every parameter group's initial learning rate times one schedule; the groups' relation stays what it was.

    PyTorch's scheduler counts what it calls epochs; here they are iterations.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """
        Args:
            optimizer: its groups' rates are the initial ones.
            multiplier: the schedule, from [0, 1] to the factor.
            max_iter: iterations of the whole training.
            last_iter: the last iteration that was done, -1 for none.

        Raises:
            ValueError: ``multiplier`` is not a fvcore ``ParamScheduler``.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier has to be a ParamScheduler of fvcore, but is {multiplier!r}.")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Iteration and initial rates; the schedule itself has no state."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The groups' rates at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [rate * factor for rate in self.base_lrs]
