"""Non-maximum suppression."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group of boxes.

    Args:
        boxes: (N, 4), XYXY. Worked on in float32: half precision cannot tell shifted groups apart.
        scores: (N,).
        idxs: (N,) integers; boxes with different numbers never suppress each other.
        iou_threshold: a box that overlaps a better one of its group by more than this goes.

    Returns:
        The indices of the boxes that stay, by falling score.

    Raises:
        ValueError: ``boxes`` has not 4 columns.
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"batched_nms: boxes must be of shape (N, 4), but they are {tuple(boxes.shape)}.")
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
