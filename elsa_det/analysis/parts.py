"""Which part of a model is running, and figures by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class Figures:
    """What a part of a model costs.

    Args:
        parameters: numbers that are learnt, each counted once, in the part that owns it first.
        trainable: those of them that are not frozen.
        multiply_adds: by kind of operation, see :mod:`elsa_det.analysis.multiply_adds`.
        kept_bytes: what autograd keeps for the backward, see :mod:`elsa_det.analysis.memory`; None if not counted.
    """

    parameters: int = 0
    trainable: int = 0
    multiply_adds: Counter[str] = field(default_factory=Counter)
    kept_bytes: int | None = None

    def add(self, other: Figures) -> None:
        """Add another part's figures to these."""
        self.parameters += other.parameters
        self.trainable += other.trainable
        self.multiply_adds.update(other.multiply_adds)
        if other.kept_bytes is not None:
            self.kept_bytes = (self.kept_bytes or 0) + other.kept_bytes


class PartWatch:
    """While the context is open, :attr:`current` is the dotted name of the module of ``model`` that is running.

    The innermost one counts; "" is the model itself, or code outside all of its modules. A module counts as running
    while it is called: not while one of its other methods runs.

    Args:
        model: whose modules are watched.
        on_switch: called with the running module's name and the module, right before another one starts or this one
            ends: the work since the last call is that module's.
    """

    def __init__(self, model: nn.Module, on_switch: Callable[[str, nn.Module], None] | None = None) -> None:
        self._model, self._on_switch = model, on_switch
        self._running: list[tuple[str, nn.Module]] = [("", model)]
        self._handles: list[Any] = []

    @property
    def current(self) -> str:
        return self._running[-1][0]

    def settle(self) -> None:
        """Call ``on_switch`` for the work since the last switch."""
        if self._on_switch is not None:
            self._on_switch(*self._running[-1])

    def __enter__(self) -> PartWatch:
        for name, module in self._model.named_modules():
            if name:
                self._handles.append(module.register_forward_pre_hook(self._entering(name)))
                self._handles.append(module.register_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self.settle()
            self._running.append((name, module))

        return enter

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.settle()
        self._running.pop()


class Accounting:
    """Figures of the parts of a model, by dotted name.

    Args:
        names: of all modules, in the model's order, the root's ("") first.
    """

    def __init__(self, names: list[str]) -> None:
        #: what belongs to a module itself, its submodules left out
        self.own = {name: Figures() for name in names}

    def totals(self) -> dict[str, Figures]:
        """The figures of every module with all its submodules, in the model's order."""
        totals = {name: Figures() for name in self.own}
        for name, figures in self.own.items():
            totals[""].add(figures)
            parts = name.split(".") if name else []
            for length in range(1, len(parts) + 1):
                totals[".".join(parts[:length])].add(figures)
        return totals

    def total(self, name: str = "") -> Figures:
        """The figures of one module with all its submodules.

        Raises:
            KeyError: there is no module of that name.
        """
        if name not in self.own:
            raise KeyError(f"the model has no part {name!r}")
        return self.totals()[name]

    def tree(self, depth: int) -> Iterator[tuple[str, Figures]]:
        """(name, figures with all submodules) of the modules down to ``depth`` dots, in the model's order.

        Parts that cost nothing are left out.
        """
        for name, figures in self.totals().items():
            shown = not name or name.count(".") < depth
            if shown and (figures.parameters or figures.multiply_adds.total() or figures.kept_bytes):
                yield name, figures


def count_parameters(model: nn.Module, accounting: Accounting) -> None:
    """Count every parameter once, in the first module that owns it."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            accounting.own[name].parameters += parameter.numel()
            accounting.own[name].trainable += parameter.numel() * parameter.requires_grad
