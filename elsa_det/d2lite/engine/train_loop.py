"""Trainers: the loop that calls the hooks, and what one step of it does."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..utils import comm
from ..utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something a trainer calls at fixed moments of training; every method is optional.

    Timing is measured between :meth:`before_step` and :meth:`after_step`, so work that takes time belongs into
    :meth:`after_step`.
    """

    trainer: Any = None
    """Weak reference to the trainer, set when the hook is registered."""

    def before_train(self) -> None:
        """Called once before the first iteration."""

    def after_train(self) -> None:
        """Called once after the last iteration, also when training ended with an exception."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called when the gradients of an iteration are there, before the optimizer uses them."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this hook. A hook that returns something has ``load_state_dict`` too."""
        return {}


class TrainerBase:
    """The loop alone: it knows hooks and the iteration number, but neither model nor data.

    Attributes:
        iter: Iteration under way, counted from 0. It equals ``max_iter`` in ``after_train`` if all went well.
        start_iter: Iteration this run began at.
        max_iter: Iteration to stop before.
        storage: Open during :meth:`train`; where hooks and model leave their scalars.
    """

    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Append hooks; they are called in this order. ``None`` entries are dropped.

        Raises:
            TypeError: An entry is neither a hook nor ``None``.
        """
        added = [hook for hook in hooks if hook is not None]
        for hook in added:
            if not isinstance(hook, HookBase):
                raise TypeError(f"register_hooks: {hook!r} is a {type(hook).__name__}, not a HookBase.")
        for hook in added:
            hook.trainer = weakref.proxy(self)  # the trainer owns its hooks, not the other way round
        self._hooks.extend(added)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``. ``after_train`` is called whatever happens."""
        logger.info("Starting training from iteration %d", start_iter)
        self.start_iter, self.max_iter = start_iter, max_iter
        self.iter = start_iter
        with contextlib.ExitStack() as at_the_end:
            self.storage = at_the_end.enter_context(EventStorage(start_iter))
            at_the_end.callback(self.after_train)
            at_the_end.push(functools.partial(_log_failure, "Exception during training:"))
            self.before_train()
            for iteration in range(start_iter, max_iter):
                self._run_iteration(iteration)
            self.iter += 1  # how after_train sees that the run was not cut short

    def _run_iteration(self, iteration: int) -> None:
        self.iter = iteration
        for part in (self.before_step, self.run_step, self.after_step):
            part()

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            getattr(hook, moment)()

    def before_train(self) -> None:
        self._call_hooks("before_train")

    def after_train(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self) -> None:
        self.storage.iter = self.iter  # both counters agree all through a step
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        self._call_hooks("after_step")

    def run_step(self) -> None:
        """One iteration; subclasses say what it is."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """``iteration``, and under ``hooks`` the state of every stateful hook by class name (of equals, the first)."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            name = type(hook).__qualname__
            if name not in states and (state := hook.state_dict()):
                states[name] = state
        return {"iteration": self.iter, "hooks": states} if states else {"iteration": self.iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; states of hooks that are not registered are reported."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook: Any = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint has a state for hook '%s', which is not registered: ignored.", name)
            else:
                hook.load_state_dict(state)


def _log_failure(what: str, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
    """For an ``ExitStack``: what went wrong is in the log before anything else is closed."""
    if isinstance(error, Exception):
        logger.error(what, exc_info=error)


class SimpleTrainer(TrainerBase):
    """One model, one stream of data, one optimizer: forward, backward, step."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        """The model is put into training mode.

        Args:
            model: Takes one item of ``data_loader``, returns a dict of scalar losses (or one scalar loss).
            data_loader: Must not run out before training ends.
            optimizer: Over the parameters of ``model``.
            gather_metric_period: Losses are collected from all ranks, checked and stored every so many iterations.
            zero_grad_before_forward: Clear gradients before the forward pass, not between forward and backward.
            async_write_metrics: Collect and store the losses in a thread beside the step. A failure there (such as
                a loss that is not finite) then stops training one iteration late.
        """
        super().__init__()
        model.train()
        self.model = model
        self.optimizer = optimizer
        self.zero_grad_before_forward = zero_grad_before_forward
        self.data_loader = data_loader
        self.gather_metric_period, self.async_write_metrics = gather_metric_period, async_write_metrics
        # A single worker, so that metrics are written in the order of the iterations. Its thread starts on first use.
        self.concurrent_executor = ThreadPoolExecutor(max_workers=1)
        self._pending_metrics: Future | None = None

    @functools.cached_property
    def _data_loader_iter(self) -> Iterator:
        """Made when first needed: starting the workers of a data loader is expensive."""
        return iter(self.data_loader)

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Drop the data loader, then take the one that ``data_loader_builder()`` makes."""
        del self.data_loader
        self.__dict__.pop("_data_loader_iter", None)  # its workers end before those of the next one start
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        """Forward, backward, and an update of the weights.

        Raises:
            RuntimeError: The model is not in training mode.
            FloatingPointError: The losses are not finite.
        """
        if not self.model.training:
            raise RuntimeError(
                f"[{type(self).__name__}] the model is in eval mode at iteration {self.iter}. "
                "Whatever evaluated it has to put it back with model.train()."
            )
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses, total = self._compute_losses(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(total)
        self.after_backward()
        self._record_metrics(losses, data_time)
        self._update_weights()

    def _next_batch(self) -> tuple[Any, float]:
        """The next batch, and the seconds it let us wait."""
        began = time.perf_counter()
        return next(self._data_loader_iter), time.perf_counter() - began

    # The three parts of a step in which precision makes a difference.

    def _compute_losses(self, data: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            return {"total_loss": losses}, losses
        return losses, sum(losses.values())  # type: ignore[return-value]

    def _backward(self, total: torch.Tensor) -> None:
        total.backward()

    def _update_weights(self) -> None:
        self.optimizer.step()

    def _record_metrics(self, losses: Mapping[str, torch.Tensor], data_time: float) -> None:
        if not self.async_write_metrics:
            self._write_metrics(losses, data_time)
            return
        if self._pending_metrics is not None:
            self._pending_metrics.result()
        self._pending_metrics = self.concurrent_executor.submit(self._write_metrics, losses, data_time, iter=self.iter)

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """:meth:`write_metrics`, every ``gather_metric_period`` iterations."""
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period:
            return
        with contextlib.ExitStack() as at_the_end:
            at_the_end.push(functools.partial(_log_failure, "Exception in writing metrics: "))
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Put the losses, averaged over ranks, and their sum ``total_loss`` into the current event storage.

        All ranks must call this. ``data_time`` becomes that of the slowest rank, which is what everyone waited for;
        each rank's own goes to ``rank_data_time``.

        Args:
            loss_dict: Scalar losses by name.
            data_time: Seconds spent waiting for data.
            cur_iter: Iteration the losses belong to.
            prefix: Put before the name ``total_loss``.

        Raises:
            FloatingPointError: The sum is infinite or NaN (noticed on the main process).
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        own = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather((own, data_time))
        if not comm.is_main_process():
            return

        storage.put_scalar("data_time", max(seconds for _, seconds in gathered), cur_iter=cur_iter)
        ranks = [losses for losses, _ in gathered]
        means = {name: sum(losses[name] for losses in ranks) / len(ranks) for name in ranks[0]}
        total = sum(means.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def after_train(self) -> None:
        self.concurrent_executor.shutdown(wait=True)  # hooks that write out metrics shall find those of the last step
        super().after_train()
        finished = self.iter >= self.max_iter
        if finished and self._pending_metrics is not None:
            self._pending_metrics.result()  # a failure in the last step has nobody else to tell

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` in mixed precision: CUDA autocast around the forward pass, scaled gradients."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ):
        """What :class:`SimpleTrainer` does not know:

        Args:
            grad_scaler: Scales the loss so that small gradients survive; a default one if not given.
            precision: What autocast computes in, ``torch.float16`` or ``torch.bfloat16``.
            log_grad_scaler: Store the scale as ``[metric]grad_scaler``.

        Raises:
            ValueError: The model runs on several devices in this one process.
        """
        inner_devices = model.device_ids if isinstance(model, DistributedDataParallel) else None
        if isinstance(model, DataParallel) or len(inner_devices or ()) > 1:
            raise ValueError("AMPTrainer wants one device per process: use DistributedDataParallel with one device_id.")
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """As in :class:`SimpleTrainer`.

        Raises:
            RuntimeError: There is no CUDA device.
        """
        if not torch.cuda.is_available():
            raise RuntimeError(
                "AMPTrainer trains on CUDA only, and no CUDA device is usable here. "
                "Train in full precision with train.amp.enabled=False (SimpleTrainer)."
            )
        super().run_step()

    def _compute_losses(self, data: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        with torch.autocast("cuda", dtype=self.precision):
            return super()._compute_losses(data)

    def _backward(self, total: torch.Tensor) -> None:
        self.grad_scaler.scale(total).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _update_weights(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
