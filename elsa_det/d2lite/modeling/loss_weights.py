"""Factors on the losses of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

LossWeight = float | Mapping[str, float]


def by_name(weight: LossWeight, losses: Sequence[str]) -> Mapping[str, float]:
    """A factor for each of these losses, from one for all or from such a mapping."""
    return weight if isinstance(weight, Mapping) else dict.fromkeys(losses, weight)


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The losses times their factors; one without a factor stays as it is."""
    return {name: loss * weights.get(name, 1.0) for name, loss in losses.items()}
