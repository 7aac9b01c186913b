"""The time that goes into each part of a model, seen by hooks on its children."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_NAMES = {"proposal_generator": "proposals", "roi_heads": "heads"}

#: what is left of a forward when its parts are taken away: normalising and padding, losses, resizing of the results
REST = "rest"


class Clock:
    """Marks points in time on a device; on a GPU they lie in its stream, so that nothing waits for them."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> float:
        """Seconds of the host's clock, once the device has done all its work."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    @staticmethod
    def between(begin: Any, end: Any) -> float:
        """Seconds from one mark to another; on a GPU after :meth:`wait` only."""
        return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3


def model_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model by name: its children, with a backbone inside an FPN as a part of its own.

    An FPN then is "neck": it is given whole, and :class:`PartTimer` takes the "backbone" out of its time.
    """
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        inner = getattr(child, "bottom_up", None)
        if isinstance(inner, nn.Module):
            parts |= {"backbone": inner, "neck": child}
        else:
            parts[_NAMES.get(name, name)] = child
    return parts


class PartTimer:
    """Adds up the time that calls of a model's parts take."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self.clock = clock
        self._spans: dict[str, list[tuple[Any, Any]]] = {}
        self._open: dict[str, Any] = {}
        self._handles: list[Any] = []
        parts = model_parts(model)
        self._neck_holds_backbone = "neck" in parts
        for name, module in parts.items():
            self._handles.append(module.register_forward_pre_hook(self._opener(name)))
            self._handles.append(module.register_forward_hook(self._closer(name)))

    def _opener(self, name: str) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            self._open[name] = self.clock.mark()

        return begin

    def _closer(self, name: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            self._spans.setdefault(name, []).append((self._open.pop(name), self.clock.mark()))

        return end

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last time, on a GPU after ``clock.wait()``; parts that did not run are left
        out."""
        spans, self._spans = self._spans, {}
        seconds = {name: sum(self.clock.between(*span) for span in found) for name, found in spans.items()}
        if self._neck_holds_backbone and "neck" in seconds:
            seconds["neck"] -= seconds.get("backbone", 0.0)
        return seconds

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
