"""Counting multiply-adds: torch's operator-level counter, with a handler for the ELSA operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..ops import elsa
from ..ops.reference import elsa_attention_shifted
from ..ops.registration import missing_part
from .parts import Accounting, PartWatch

aten = torch.ops.aten

CONVOLUTION, LINEAR, PRODUCTS, AGGREGATION, GHOST = (
    "convolution",
    "linear",
    "matrix products",
    "ELSA aggregation",
    "ELSA ghost matrices",
)
_KINDS = {aten.mm: LINEAR, aten.addmm: LINEAR}
_KINDS |= dict.fromkeys((aten.convolution, aten._convolution, aten.cudnn_convolution), CONVOLUTION)


def elsa_multiply_adds(
    value_shape: Sequence[int], kernel_size: int, ghost_mul: bool, ghost_add: bool
) -> dict[str, int]:
    """Multiply-adds of the ELSA operator on a (B, C, H, W) value: C * K**2 * N for the aggregation, and as many for
    each ghost matrix in use, with N = B * H * W pixels. The softmax is not counted.

    The convention of the paper (Zhou et al., arXiv 2112.12786): it gives the published figures of the classifiers.
    """
    taps = prod(value_shape) * kernel_size**2
    return {AGGREGATION: taps, GHOST: taps * (ghost_mul + ghost_add)}


def _fused_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *others: Any, **out: Any
) -> int:
    """Two operations for each multiply-add of query by key (..., Q, D) x (..., K, D), and of weights by value."""
    return 2 * prod(query) * key[-2] + 2 * prod(query[:-1]) * key[-2] * value[-1]


class MultiplyAddCounter:
    """Counts the multiply-adds of everything that runs while the context is open, by part and by kind.

    Convolutions, linear layers, batched matrix products and attention as :mod:`torch.utils.flop_counter` counts them
    (half of its operations), and :func:`elsa_multiply_adds`. Nothing is counted for additions of a bias, norms,
    activations, softmax, pooling and resizing. Works on any device, ``meta`` included, where nothing is computed.

    Args:
        model: whose modules are the parts.
        accounting: where the figures go.
    """

    def __init__(self, model: nn.Module, accounting: Accounting) -> None:
        self._accounting = accounting
        self._watch = PartWatch(model, self._settle)
        self._shifted = patch.object(elsa, "elsa_attention_shifted", self._count_shifted)
        self._elsa: Counter[str] = Counter()
        # newer releases of torch count the CPU's fused attention too, those up to 2.14 do not
        handlers: dict[Any, Any] = {aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops}
        if missing_part("cpu") is None:
            handlers[torch.ops.elsa_det.elsa_attention_forward] = self._count_operator
        self._operators = FlopCounterMode(display=False, custom_mapping=handlers)
        self._settled: Counter[str] = Counter()

    def __enter__(self) -> MultiplyAddCounter:
        self._operators.__enter__()
        self._watch.__enter__()
        self._shifted.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.settle()
        self._shifted.__exit__(*error)
        self._watch.__exit__(*error)
        self._operators.__exit__(*error)

    def _count_operator(
        self,
        value: Sequence[int],
        logits: Sequence[int],
        ghost_mul: Any,
        ghost_add: Any,
        kernel_size: int,
        dilation: int,
        **out: Any,
    ) -> int:
        self._elsa.update(elsa_multiply_adds(value, kernel_size, ghost_mul is not None, ghost_add is not None))
        return 0  # counted above, by kind

    def _counted(self) -> Counter[str]:
        """Everything since the context was opened, by kind."""
        kinds = Counter(self._elsa)
        for operator, flops in self._operators.flop_counts["Global"].items():
            kinds[_KINDS.get(operator, PRODUCTS)] += flops // 2
        return kinds

    def _settle(self, part: str, module: nn.Module) -> None:
        counted = self._counted()
        self._accounting.own[part].multiply_adds.update(counted - self._settled)
        self._settled = counted

    def _count_shifted(
        self,
        value: Tensor,
        logits: Tensor,
        ghost_mul: Tensor | None,
        ghost_add: Tensor | None,
        *,
        kernel_size: int,
        dilation: int = 1,
    ) -> Tensor:
        """What runs where the compiled operator does not: its many operators count as the one that they stand for."""
        self._watch.settle()
        out = elsa_attention_shifted(value, logits, ghost_mul, ghost_add, kernel_size=kernel_size, dilation=dilation)
        self._settled = self._counted()
        self._elsa.update(elsa_multiply_adds(value.shape, kernel_size, ghost_mul is not None, ghost_add is not None))
        return out
