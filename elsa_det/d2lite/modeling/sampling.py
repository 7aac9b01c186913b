"""Random choice of the examples that a loss is computed on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Choose positives up to their share, then fill up with negatives.

    Args:
        labels: (N,), ``bg_label`` for negatives, -1 for what is ignored, anything else is positive.
        num_samples: how many to choose; fewer if there are not enough.
        positive_fraction: in [0, 1], the most that may be positive.
        bg_label: the label of negatives.

    Returns:
        Indices of the chosen positives and of the chosen negatives, both in random order.
    """
    is_negative = labels == bg_label
    positive = _draw(~is_negative & (labels != -1), int(num_samples * positive_fraction))
    return positive, _draw(is_negative, num_samples - len(positive))


def _draw(mask: Tensor, count: int) -> Tensor:
    """Up to ``count`` of the indices where ``mask`` is true.

    All of them are put in random order first, even where none is left out: seeded runs depend on the draws.
    """
    index = torch.nonzero(mask).flatten()
    order = torch.randperm(len(index), device=index.device)
    return index[order[:count]]
