"""The loss of semantic segmentation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_label: int = 255,
    average_over_valid: bool = True,
    align_corners: bool = False,
) -> Tensor:
    """Cross entropy of each pixel, at the resolution of the labels, averaged.

    Args:
        logits: (B, classes, h, w); resized bilinearly to the labels.
        target: (B, H, W) int64, classes from 0, or ``ignore_label``.
        ignore_label: pixels of this value do not count.
        average_over_valid: divide the sum by the number of pixels that count, so that ignored ones change nothing; a
            batch without any gives 0. False divides by the number of all pixels, as the published models were trained
            (mmsegmentation 0.x): the more is ignored, the smaller the loss.
        align_corners: as in ``F.interpolate``.

    Returns:
        A float32 scalar.
    """
    logits = logits.float()
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=align_corners)
    total = F.cross_entropy(logits, target, ignore_index=ignore_label, reduction="sum")
    if average_over_valid:
        return total / (target != ignore_label).sum().clamp(min=1)
    return total / target.numel()
