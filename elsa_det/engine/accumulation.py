"""Training steps: of one pass or several (gradient accumulation), with their numbers watched."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..d2 import AMPTrainer, SimpleTrainer
from .bad_numbers import OFF, NumberGuard


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
        guard: watches losses and gradients; it may leave a step out. All micro-batches of such a step are taken from
            the loader nonetheless.
        args, kwargs: of the trainer this one is derived from.

    Attributes:
        step_taken: whether the latest step went as far as the optimizer.
    """

    def __init__(self, *args: Any, accumulate: int, guard: NumberGuard | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        self.accumulate = accumulate
        self.step_taken = True
        self._guard: Any = _Trusting() if guard is None else guard
        self.register_hooks([guard])
        self._waited = 0.0

    def run_step(self) -> None:
        """Forward and backward of every micro-batch, then one update of the weights.

        Raises:
            RuntimeError: the model is not in training mode.
            BadNumbersError: losses or gradients are not finite, and the guard stops there.
            FloatingPointError: the same without a guard, as far as Detectron2 notices.
        """
        if not self.model.training:
            raise RuntimeError(f"the model is in eval mode at iteration {self.iter}: put it back with model.train()")
        self.step_taken = False
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        self._waited = 0.0
        self._guard.begin()
        for number in range(1, self.accumulate + 1):
            with self._without_exchange() if number < self.accumulate else contextlib.nullcontext():
                losses = self._guard.losses(self._forward)
                if losses is None:
                    for _ in range(number, self.accumulate):
                        self._next_data()
                    return
                self._add_gradients(sum(losses.values()) / self.accumulate)
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / self.accumulate
        if not self._guard.gradients():
            return
        self.after_backward()
        self._write_metrics(means, self._waited)
        self._step_optimizer()
        self.step_taken = True

    def _next_data(self) -> Any:
        began = time.perf_counter()
        data = next(self._data_loader_iter)
        self._waited += time.perf_counter() - began
        return data

    def _forward(self) -> Mapping[str, Tensor]:
        data = self._next_data()
        self._guard.saw(data)
        return self._losses(data)

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


def make_trainer(
    model: Any, loader: Any, optimizer: Any, *, amp: bool, accumulate: int = 1, guard: NumberGuard | None = None
) -> SimpleTrainer:
    """The trainer for a precision and a number of micro-batches; Detectron2's own where one pass is an unwatched step.

    A guard is registered as a hook of the trainer; one that is "off" is left out.
    """
    if guard is not None and guard.options.action == OFF:
        guard = None
    if accumulate == 1 and guard is None:
        return (AMPTrainer if amp else SimpleTrainer)(model, loader, optimizer)
    kind = AccumulatingAMPTrainer if amp else AccumulatingTrainer
    return kind(model, loader, optimizer, accumulate=accumulate, guard=guard)


class _Trusting:
    """In place of a guard: Detectron2's own check of the losses, after backward, is all there is."""

    def begin(self) -> None:
        pass

    def saw(self, batch: Any) -> None:
        pass

    def losses(self, run: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return run()

    def gradients(self) -> bool:
        return True
