"""Counting what autograd keeps for the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .parts import Accounting, PartWatch


class KeptMemory:
    """Counts the bytes kept for the backward by everything that runs while the context is open, by part.

    Every storage counts once, whole, for the part that keeps it first; parameters and buffers do not count, the image
    does. What a checkpointed part recomputes is not kept. Window attention counts as the CPU computes it; a fused
    kernel, as on CUDA, does not keep its probabilities. On the ``meta`` device nothing is allocated. Storages are held
    until the context is closed.

    Args:
        model: whose modules are the parts.
        accounting: where the figures go.
    """

    def __init__(self, model: nn.Module, accounting: Accounting) -> None:
        self._accounting, self._watch = accounting, PartWatch(model)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        # Storages are known by address: as long as this holds them, no other one gets the same.
        states = [*model.parameters(), *model.buffers()]
        self._known = {storage._cdata: storage for storage in (state.untyped_storage() for state in states)}

    def __enter__(self) -> KeptMemory:
        for figures in self._accounting.own.values():
            figures.kept_bytes = figures.kept_bytes or 0
        self._watch.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self._watch.__exit__(*error)
        self._known.clear()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage
            figures = self._accounting.own[self._watch.current]
            figures.kept_bytes = (figures.kept_bytes or 0) + storage.nbytes()
        return tensor
