"""Mask R-CNN (He et al., ICCV 2017): losses, inference and the standard head.

Letters for shapes: B regions of all images, K classes (1 if masks are class-agnostic), M side of a predicted mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...layers import Conv2d, ConvTranspose2d, ShapeSpec, cat
from ...structures import Instances
from ...utils.events import get_event_storage
from ...utils.registry import Registry
from .box_head import add_convs

__all__ = ["ROI_MASK_HEAD_REGISTRY", "BaseMaskRCNNHead", "MaskRCNNConvUpsampleHead"]

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
"""Modules that map the pooled features of regions to masks, as :class:`BaseMaskRCNNHead` does."""


def _of_class(masks: Tensor, instances: list[Instances], field: str) -> Tensor:
    """The (B, M, M) of ``masks`` (B, K, M, M) that belong to the classes in ``field``, or the only ones there are."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    classes = cat([i.get(field).to(torch.int64) for i in instances])
    return masks[torch.arange(len(masks), device=masks.device), classes]


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances], vis_period: int = 0) -> Tensor:
    """Mean binary cross entropy of the masks, each in its proposal box and of its ground-truth class.

    Args:
        pred_mask_logits: (B, K, M, M).
        instances: for each image the regions, in the same order, with ``proposal_boxes``, ``gt_classes``, ``gt_masks``.
        vis_period: if above 0, predictions and targets go to the event storage as images every so many iterations.

    Raises:
        ValueError: predictions that are not square.
    """
    side = pred_mask_logits.shape[-1]
    if pred_mask_logits.shape[-2] != side:
        raise ValueError(f"mask_rcnn_loss: masks must be square, got {tuple(pred_mask_logits.shape)}.")
    occupied = [i for i in instances if len(i)]  # images without foreground have no gt_masks
    if not occupied:
        return pred_mask_logits.sum() * 0
    logits = _of_class(pred_mask_logits, occupied, "gt_classes")
    targets = cat([i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, side).to(logits.device) for i in occupied])
    is_target = targets if targets.dtype == torch.bool else targets > 0.5
    targets = targets.float()

    wrong = (logits > 0.0) != is_target
    num_wrong, num_missed = wrong.sum().item(), (wrong & is_target).sum().item()
    num_pixels, num_positive = wrong.numel(), is_target.sum().item()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - num_wrong / max(num_pixels, 1.0))
    storage.put_scalar("mask_rcnn/false_positive", (num_wrong - num_missed) / max(num_pixels - num_positive, 1.0))
    storage.put_scalar("mask_rcnn/false_negative", num_missed / max(num_positive, 1.0))
    if vis_period > 0 and storage.iter % vis_period == 0:
        pairs = torch.cat([logits.sigmoid(), targets], dim=2)
        for i, pair in enumerate(pairs):
            storage.put_image(f"Left: mask prediction;   Right: mask GT ({i})", pair.expand(3, -1, -1))

    return F.binary_cross_entropy_with_logits(logits, targets, reduction="mean")


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Set ``pred_masks`` of each image: probabilities (its regions, 1, M, M) of the class in ``pred_classes``.

    Args:
        pred_mask_logits: (B, K, M, M).
        pred_instances: for each image its detections, in the same order; changed in place.
    """
    probabilities = _of_class(pred_mask_logits, pred_instances, "pred_classes")[:, None].sigmoid()
    for instances, masks in zip(pred_instances, probabilities.split([len(i) for i in pred_instances])):
        instances.pred_masks = masks


class BaseMaskRCNNHead(nn.Module):
    """Loss and inference of Mask R-CNN around the :meth:`layers` of a subclass."""

    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0) -> None:
        """``loss_weight``: factor of the loss; ``vis_period``: as in :func:`mask_rcnn_loss`."""
        super().__init__()
        self.vis_period = vis_period
        self.loss_weight = loss_weight

    def forward(self, x: Any, instances: list[Instances]) -> Any:
        """In training ``{"loss_mask": ...}`` of foreground proposals; else the detections with ``pred_masks``.

        ``x``: features of all regions of ``instances``, in the same order.
        """
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """Features of regions to mask logits (B, K, M, M)."""
        raise NotImplementedError


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):  # type: ignore[misc]  # two kinds of forward
    """3x3 convolutions (each with norm and ReLU), a transposed one that doubles the side, and a 1x1 predictor."""

    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: Sequence[int], conv_norm: Any = "", **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: the channels of the pooled features are read from it.
            num_classes: K; 1 for class-agnostic masks.
            conv_dims: output channels of each convolution; the last one is the transposed convolution.
            conv_norm: as ``layers.get_norm`` takes it; the 3x3 convolutions have a bias only without one.
            kwargs: of :class:`BaseMaskRCNNHead`.

        Raises:
            ValueError: empty ``conv_dims``.
        """
        super().__init__(**kwargs)
        if not conv_dims:
            raise ValueError("MaskRCNNConvUpsampleHead: conv_dims is empty; it needs at least the upsampling layer.")
        *hidden, last = conv_dims
        channels: int = input_shape.channels  # type: ignore[assignment]
        self.conv_norm_relus = add_convs(self, "mask_fcn", channels, hidden, conv_norm)
        self.deconv = ConvTranspose2d([channels, *hidden][-1], last, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(last, num_classes, kernel_size=1)
        for layer in (*self.conv_norm_relus, self.deconv):
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def layers(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)
