"""Region Proposal Network (Ren et al., NeurIPS 2015).

Letters for shapes: N images, L feature maps, A anchors at a cell, R anchors of all feature maps of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import Conv2d, cat
from ...structures import Boxes, ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ...utils.memory import retry_if_cuda_oom
from ...utils.registry import Registry
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
"""Modules that predict objectness and box codes for anchors, as :class:`StandardRPNHead` does."""


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """Convolutions (3x3, ReLU) shared by all levels, then 1x1 ones for objectness and for box codes."""

    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)
    ) -> None:
        """
        Args:
            in_channels: of every feature map.
            num_anchors: A, the same for every feature map.
            box_dim: numbers in a box code.
            conv_dims: output channels of each 3x3 convolution, -1 for as many as it gets.

        Raises:
            ValueError: no convolution, or channels that are neither above 0 nor -1.
        """
        super().__init__()
        if not conv_dims or any(dim < 1 and dim != -1 for dim in conv_dims):
            raise ValueError(f"StandardRPNHead: conv_dims must be numbers above 0 or -1, got {list(conv_dims)}.")
        convs = []
        channels = in_channels
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            convs.append(self._get_rpn_conv(channels, out_channels))
            channels = out_channels
        if len(convs) == 1:
            self.conv: nn.Module = convs[0]
        else:
            self.conv = nn.Sequential()
            for k, conv in enumerate(convs):
                self.conv.add_module(f"conv{k}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> Conv2d:
        return Conv2d(in_channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU())

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each feature map (N, C, H, W) objectness logits (N, A, H, W) and box codes (N, A * box_dim, H, W)."""
        hidden = [self.conv(feature) for feature in features]
        return [self.objectness_logits(h) for h in hidden], [self.anchor_deltas(h) for h in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Scores and moves anchors, and proposes the best of them."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | Mapping[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps to use.
            head: predicts objectness and box codes, as :class:`StandardRPNHead`.
            anchor_generator: makes the anchors of each feature map.
            anchor_matcher: labels anchors by their IoU with the ground truth.
            box2box_transform: how boxes are coded relative to anchors.
            batch_size_per_image: anchors of each image that the loss is computed on.
            positive_fraction: the most of these that may be positive, in [0, 1].
            pre_nms_topk: (in training, in inference) proposals to keep of each feature map and image before NMS.
            post_nms_topk: (in training, in inference) proposals to keep of each image.
            nms_thresh: IoU above which NMS drops the lower-scored box.
            min_box_size: proposals must be longer than this in both directions, in pixels.
            anchor_boundary_thresh: if 0 or above, anchors farther outside of the image, in pixels, are not trained.
            loss_weight: factor of the losses, or one for each of "loss_rpn_cls" and "loss_rpn_loc".
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            smooth_l1_beta: where smooth L1 turns from L2 to L1; 0 is plain L1.
        """
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = dict(zip((True, False), pre_nms_topk))  # by self.training
        self.post_nms_topk = dict(zip((True, False), post_nms_topk))
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, Mapping):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: the batch; only its ``image_sizes`` are used.
            features: feature maps (N, C, H, W) by name.
            gt_instances: for each image its ``gt_boxes``; needed in training.

        Returns:
            Proposals of each image (see :func:`find_top_rpn_proposals`), and losses (none in inference).

        Raises:
            ValueError: no ground truth in training.
            FloatingPointError: Inf or NaN in the predictions in training.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logit_maps, delta_maps = self.rpn_head(maps)
        # The anchors of a feature map come cell by cell, so the predictions are put in that order.
        logits = [logit.permute(0, 2, 3, 1).flatten(1) for logit in logit_maps]
        box_dim = self.anchor_generator.box_dim
        deltas = [d.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for d in delta_maps]

        losses: dict[str, Tensor] = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("RPN: training needs ground truth; the inputs have no 'instances'.")
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match the anchors of each image with its ground truth, and sample those that the loss is computed on.

        Returns:
            For each image the labels (R,) int8, 1 positive, 0 negative, -1 not in the sample,
            and the boxes (R, 4) to regress to, which mean something where the label is 1.
        """
        joined = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for gt in gt_instances:
            gt_boxes: Boxes = gt.gt_boxes
            # The largest matrices of all, so this may fall back to the CPU.
            overlaps = retry_if_cuda_oom(pairwise_iou)(gt_boxes, joined)
            index, labels = (t.to(gt_boxes.device) for t in retry_if_cuda_oom(self.anchor_matcher)(overlaps))
            if self.anchor_boundary_thresh >= 0:
                labels[~joined.inside_box(gt.image_size, self.anchor_boundary_thresh)] = -1  # type: ignore[arg-type]
            all_labels.append(self._subsample_labels(labels))
            all_boxes.append(gt_boxes.tensor[index] if len(gt_boxes) else torch.zeros_like(joined.tensor))
        return all_labels, all_boxes

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """``label`` with -1 at everything that is not in a random sample."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        sampled = torch.full_like(label, -1)
        sampled[positive] = 1
        sampled[negative] = 0
        return sampled

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls`` and ``loss_rpn_loc``, both divided by the size of the sample over all images.

        Args:
            anchors: for each feature map (H * W * A, 4).
            pred_objectness_logits: for each feature map (N, H * W * A).
            gt_labels: for each image (R,), from :meth:`label_and_sample_anchors`.
            pred_anchor_deltas: for each feature map (N, H * W * A, 4).
            gt_boxes: for each image (R, 4), from :meth:`label_and_sample_anchors`.
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)
        positive, sampled = labels == 1, labels >= 0
        num_positive, num_sampled = positive.sum().item(), sampled.sum().item()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (num_sampled - num_positive) / num_images)

        localization = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        logits = cat(pred_objectness_logits, dim=1)[sampled]
        objectness = F.binary_cross_entropy_with_logits(logits, labels[sampled].float(), reduction="sum")
        sample_size = self.batch_size_per_image * num_images
        losses = {"loss_rpn_cls": objectness / sample_size, "loss_rpn_loc": localization / sample_size}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()  # the heads take proposals as given
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the predictions and choose the best; shapes as in :meth:`losses`."""
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """For each feature map the boxes (N, H * W * A, 4) that the codes stand for."""
        decoded = []
        for level_anchors, deltas in zip(anchors, pred_anchor_deltas):
            repeated = level_anchors.tensor.expand(len(deltas), -1, -1)
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), repeated.flatten(0, 1))
            decoded.append(boxes.view_as(deltas))
        return decoded
