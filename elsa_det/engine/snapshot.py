"""The state of a training in memory: to go back to, and what a forward pass changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within its wrapper for distributed training."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class Snapshot:
    """Weights, optimizer, gradient scaler and what is named in ``also``, in host memory.

    It takes the size of these once: with AdamW and a moving average 16 bytes a parameter, in each process.

    Args:
        trainer: with ``model``, ``optimizer``, and ``grad_scaler`` in mixed precision.
        also: more objects with ``state_dict`` and ``load_state_dict``, by name.

    Attributes:
        iteration: before which it was taken; -1 before the first.
    """

    def __init__(self, trainer: Any, also: Mapping[str, Any]) -> None:
        self.iteration = -1
        self._parts = {"model": unwrapped(trainer.model), "optimizer": trainer.optimizer, **also}
        if getattr(trainer, "grad_scaler", None) is not None:
            self._parts["grad_scaler"] = trainer.grad_scaler
        self._states: dict[str, Any] = {}

    def take(self, iteration: int, model_tensors: Mapping[str, Tensor]) -> None:
        """Keep the state as it is, but for tensors of the model that are given; the one before is overwritten."""
        for name, part in self._parts.items():
            state = part.state_dict()
            if name == "model":
                state.update((key, value) for key, value in model_tensors.items() if key in state)
            self._states[name] = _to_host(state, self._states.get(name))
        self.iteration = iteration

    def restore(self, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Go back to it, but for the parts named. The optimizer's learning rates are left to the schedule."""
        for name, part in self._parts.items():
            if name in without:
                continue
            state = self._states[name]
            if name == "optimizer":
                state = {**state, "param_groups": part.state_dict()["param_groups"]}
            part.load_state_dict(state)


def _to_host(state: Any, place: Any) -> Any:
    """A copy on the CPU, in the memory of an earlier one where it fits."""
    if isinstance(state, Tensor):
        if isinstance(place, Tensor) and place.shape == state.shape and place.dtype == state.dtype:
            return place.copy_(state.detach())
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # keeps the versions that modules attach to theirs
        for key, value in state.items():
            copied[key] = _to_host(value, place.get(key) if isinstance(place, dict) else None)
        return copied
    return copy.deepcopy(state)


class BuffersBefore:
    """The buffers of a model before a forward pass, which moves running statistics.

    All of them are copied each time: torch does not count what batch norms do to theirs as a change.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = {
            f"{prefix}.{name}" if prefix else name: (module._buffers, name)
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        }
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}  # the buffer, a copy of its values

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the values."""
        for key, (holder, name) in self._places.items():
            buffer = holder[name]
            assert buffer is not None
            kept = self._kept.get(key)
            if kept is not None and kept[0] is buffer and kept[1].shape == buffer.shape:
                kept[1].copy_(buffer)
            else:
                self._kept[key] = (buffer, buffer.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back as they were at :meth:`keep`."""
        for key, (holder, name) in self._places.items():
            buffer, values = self._kept[key]
            holder[name] = buffer.copy_(values)

    def saved(self) -> dict[str, Tensor]:
        """The remembered values, by the names of the model's state."""
        return {key: values for key, (_, values) in self._kept.items()}
