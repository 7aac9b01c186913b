"""Gradient accumulation: one optimizer step in several passes, for batches that do not fit into memory at once."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..d2 import AMPTrainer, SimpleTrainer


class AccumulatingTrainer(SimpleTrainer):
    """A :class:`SimpleTrainer` whose step takes ``accumulate`` micro-batches from the loader.

    The gradient is the mean of the micro-batches' gradients, and the recorded losses are the mean of theirs: for losses
    that are means over images, those of one batch of all their images. An iteration (in schedules, logs and
    checkpoints) is an optimizer step.

    What differs from the large batch: batch norms see a micro-batch at a time, and a loss that is a mean over something
    of which a batch has more or less (such as the mask loss, over foreground regions) is averaged within micro-batches
    first.

    Args:
        accumulate: micro-batches in a step, at least 1.
        args, kwargs: of the trainer this one is derived from.
    """

    def __init__(self, *args: Any, accumulate: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        self.accumulate = accumulate

    def run_step(self) -> None:
        """Forward and backward of every micro-batch, then one update of the weights.

        Raises:
            RuntimeError: the model is not in training mode.
            FloatingPointError: the losses are not finite.
        """
        if not self.model.training:
            raise RuntimeError(f"the model is in eval mode at iteration {self.iter}: put it back with model.train()")
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        waited = 0.0
        for number in range(1, self.accumulate + 1):
            began = time.perf_counter()
            data = next(self._data_loader_iter)
            waited += time.perf_counter() - began
            with self._without_exchange() if number < self.accumulate else contextlib.nullcontext():
                losses = self._losses(data)
                self._add_gradients(sum(losses.values()) / self.accumulate)  # type: ignore[arg-type]
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / self.accumulate
        self.after_backward()
        self._write_metrics(means, waited)
        self._step_optimizer()

    def _without_exchange(self) -> Any:
        """With several processes, gradients are exchanged in the last pass only, for all passes together."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _losses(self, data: Any) -> Mapping[str, Tensor]:
        losses = self.model(data)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _add_gradients(self, loss: Tensor) -> None:
        loss.backward()

    def _step_optimizer(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, AMPTrainer):
    """:class:`AccumulatingTrainer` in mixed precision, on CUDA."""

    def run_step(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("mixed precision is for CUDA, and there is no CUDA device: set train.amp.enabled=False")
        super().run_step()

    def _losses(self, data: Any) -> Mapping[str, Tensor]:
        with torch.autocast("cuda", dtype=self.precision):
            return super()._losses(data)

    def _add_gradients(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _step_optimizer(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def micro_batch_loader(loader: Any, accumulate: int) -> Any:
    """The config of a training loader, its ``total_batch_size`` divided by ``accumulate``; the given one is kept."""
    if accumulate == 1:
        return loader
    smaller = copy.deepcopy(loader)  # keeps its parent, so that interpolations still resolve
    smaller.total_batch_size = loader.total_batch_size // accumulate
    return smaller


def make_trainer(model: Any, loader: Any, optimizer: Any, *, amp: bool, accumulate: int = 1) -> SimpleTrainer:
    """The trainer for a precision and a number of micro-batches; Detectron2's own where one pass is a step."""
    if accumulate == 1:
        return (AMPTrainer if amp else SimpleTrainer)(model, loader, optimizer)
    kind = AccumulatingAMPTrainer if amp else AccumulatingTrainer
    return kind(model, loader, optimizer, accumulate=accumulate)
