"""How a box is coded relative to another, and the losses on such codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from ..layers import cat
from ..structures import Boxes

__all__ = ["Box2BoxTransform"]

_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)  # at most from a small anchor (16 px) to a whole image (1000 px)
_IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y of the centre, width and height, each (N,), of boxes (N, 4) given as x0, y0, x1, y1."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    width, height = x1 - x0, y1 - y0
    return x0 + 0.5 * width, y0 + 0.5 * height, width, height


class Box2BoxTransform:
    """The code (dx, dy, dw, dh) of R-CNN (Girshick et al., CVPR 2014, appendix C).

    The centre moves by (dx * width, dy * height), width and height grow by the factors exp(dw) and exp(dh).
    """

    def __init__(self, weights: Sequence[float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        """``weights``: factors of the four numbers of a code; ``scale_clamp``: upper limit of dw and dh in decoding."""
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The codes (N, 4) that lead from ``src_boxes`` (N, 4) to ``target_boxes`` (N, 4).

        Raises:
            ValueError: a source box without width or height.
        """
        x, y, width, height = _centre_and_size(src_boxes)
        if not torch.all((width > 0) & (height > 0)):
            raise ValueError("Box2BoxTransform: a source box has no width or no height (or is NaN).")
        target_x, target_y, target_width, target_height = _centre_and_size(target_boxes)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (target_x - x) / width,
                wy * (target_y - y) / height,
                ww * torch.log(target_width / width),
                wh * torch.log(target_height / height),
            ),
            dim=1,
        )

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Decode ``deltas`` (N, k * 4), k codes for each of ``boxes`` (N, 4), to boxes (N, k * 4), in float32."""
        deltas = deltas.float()
        x, y, width, height = (value[:, None] for value in _centre_and_size(boxes.to(deltas.dtype)))
        codes = deltas.unflatten(1, (-1, 4)).unbind(dim=-1)
        dx, dy, dw, dh = (code / weight for code, weight in zip(codes, self.weights))
        new_x, new_y = dx * width + x, dy * height + y
        new_width = torch.exp(dw.clamp(max=self.scale_clamp)) * width
        new_height = torch.exp(dh.clamp(max=self.scale_clamp)) * height
        corners = (
            new_x - 0.5 * new_width,
            new_y - 0.5 * new_height,
            new_x + 0.5 * new_width,
            new_y + 0.5 * new_height,
        )
        return torch.stack(corners, dim=-1).flatten(1)


def _dense_box_regression_loss(
    anchors: Sequence[Boxes] | Sequence[Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    fg_mask: Any,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the regression losses of the foreground, over all images and levels.

    Args:
        anchors: for each level (H * W * A, 4).
        box2box_transform: how boxes are coded.
        pred_anchor_deltas: for each level the predicted codes (N, H * W * A, 4).
        gt_boxes: for each of N images the target boxes (R, 4), R anchors of all levels.
        fg_mask: (N, R) bool, or ``...`` for everything.
        box_reg_loss_type: "smooth_l1" on the codes, or "giou", "diou", "ciou" on the decoded boxes.
        smooth_l1_beta: where smooth L1 turns from L2 to L1; 0 is plain L1.

    Raises:
        ValueError: an unknown ``box_reg_loss_type``.
    """
    if box_reg_loss_type != "smooth_l1" and box_reg_loss_type not in _IOU_LOSSES:
        raise ValueError(
            f"box_reg_loss_type={box_reg_loss_type!r} is unknown; use smooth_l1, {', '.join(_IOU_LOSSES)}."
        )
    sources = cat([boxes.tensor if isinstance(boxes, Boxes) else boxes for boxes in anchors])

    def foreground(values: Tensor) -> Tensor:  # (N, R, 4) -> (F, 4)
        return values[fg_mask].reshape(-1, 4)

    deltas = foreground(cat(pred_anchor_deltas, dim=1))
    targets = foreground(torch.stack(gt_boxes))
    sources = foreground(sources.expand(len(gt_boxes), -1, -1))
    if box_reg_loss_type == "smooth_l1":
        target_deltas = box2box_transform.get_deltas(sources, targets)
        return smooth_l1_loss(deltas, target_deltas, beta=smooth_l1_beta, reduction="sum")
    predicted = box2box_transform.apply_deltas(deltas, sources)
    return _IOU_LOSSES[box_reg_loss_type](predicted, targets, reduction="sum")
