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
    negative_mask = labels == bg_label
    positive = torch.nonzero((labels != -1) & ~negative_mask).flatten()
    negative = torch.nonzero(negative_mask).flatten()
    num_positive = min(int(num_samples * positive_fraction), positive.numel())
    num_negative = min(num_samples - num_positive, negative.numel())
    # A permutation of each, positives first, even where nothing is left out: seeded runs depend on the draws.
    chosen_positive = torch.randperm(positive.numel(), device=positive.device)[:num_positive]
    chosen_negative = torch.randperm(negative.numel(), device=negative.device)[:num_negative]
    return positive[chosen_positive], negative[chosen_negative]
