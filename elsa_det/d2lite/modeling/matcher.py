"""Which ground truth a predicted box belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Matcher"]


class Matcher:
    """Matches each of N predictions with the best of M ground truths, and labels it by how good the match is."""

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        """
        Args:
            thresholds: ascending, above 0. They cut the quality (IoU, in [0, 1]) into ``len(thresholds) + 1`` ranges;
                a threshold belongs to the range above it.
            labels: for each range: 1 positive, 0 negative, -1 ignored.
            allow_low_quality_matches: also label 1 what is the best prediction of some ground truth, ties included.

        Raises:
            ValueError: thresholds or labels that are not as described.
        """
        cuts = [float(t) for t in thresholds]
        if not cuts or cuts[0] <= 0 or cuts != sorted(cuts):
            raise ValueError(f"Matcher: thresholds must be ascending and above 0, got {cuts}.")
        if len(labels) != len(cuts) + 1 or any(label not in (-1, 0, 1) for label in labels):
            raise ValueError(f"Matcher: {len(cuts)} thresholds need {len(cuts) + 1} labels of -1, 0, 1, got {labels}.")
        self.thresholds = [-math.inf, *cuts, math.inf]
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            match_quality_matrix: (M, N), 0 or above.

        Returns:
            Index of the matched ground truth (N,) int64, in [0, M), and label (N,) int8. Without any ground truth all
            predictions get index 0 and the label of the lowest range.

        Raises:
            ValueError: not a matrix, or with values that are negative or NaN.
        """
        quality = match_quality_matrix
        if quality.dim() != 2:
            raise ValueError(f"Matcher: expected a matrix (M, N), got shape {tuple(quality.shape)}.")
        if quality.numel() == 0:
            index = quality.new_zeros(quality.shape[1], dtype=torch.int64)
            return index, torch.full_like(index, self.labels[0], dtype=torch.int8)
        if not torch.all(quality >= 0):
            raise ValueError("Matcher: match qualities are negative or NaN; are there NaN or inverted boxes?")

        best, index = quality.max(dim=0)
        ranges = torch.bucketize(best, best.new_tensor(self.thresholds[1:-1]), right=True)
        label = torch.tensor(self.labels, dtype=torch.int8, device=best.device)[ranges]
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(label, quality)
        return index, label

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Label 1, in place, what is the best prediction of some ground truth: case (i) of Faster R-CNN, sec. 3.1.2.

        The matched index stays: a prediction may be labelled for one ground truth and belong to another.
        """
        best_of_each = match_quality_matrix.amax(dim=1, keepdim=True)
        match_labels[(match_quality_matrix == best_of_each).any(dim=0)] = 1
