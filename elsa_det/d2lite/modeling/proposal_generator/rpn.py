"""Region Proposal Network (Ren et al., NeurIPS 2015).

Letters for shapes: N images, L feature maps, A anchors at a cell, R anchors of all feature maps of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import Conv2d, cat
from ...structures import Boxes, ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ...utils.memory import retry_if_cuda_oom
from ...utils.registry import Registry
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..loss_weights import LossWeight, by_name, weigh
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


def _in_order_of_anchors(prediction: Tensor, numbers: int) -> Tensor:
    """From (N, A * numbers, H, W) to (N, H * W * A, numbers): anchors come cell by cell."""
    n, channels, height, width = prediction.shape
    return prediction.permute(0, 2, 3, 1).reshape(n, height * width * (channels // numbers), numbers)


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
        loss_weight: LossWeight = 1.0,
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
        self.rpn_head, self.anchor_generator = head, anchor_generator
        self.box2box_transform = box2box_transform
        # What is trained on ...
        self.anchor_matcher, self.anchor_boundary_thresh = anchor_matcher, anchor_boundary_thresh
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.loss_weight = by_name(loss_weight, ("loss_rpn_cls", "loss_rpn_loc"))
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta
        # ... and what is proposed. The numbers to keep go by self.training.
        self.pre_nms_topk, self.post_nms_topk = (dict(zip((True, False), k)) for k in (pre_nms_topk, post_nms_topk))
        self.nms_thresh, self.min_box_size = nms_thresh, float(min_box_size)

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
        box_dim: int = self.anchor_generator.box_dim  # type: ignore[assignment]
        logit_maps, delta_maps = self.rpn_head(maps)
        logits = [_in_order_of_anchors(logit_map, 1).squeeze(-1) for logit_map in logit_maps]
        deltas = [_in_order_of_anchors(delta_map, box_dim) for delta_map in delta_maps]

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
        labels, boxes = zip(*(self._targets_of_image(joined, gt) for gt in gt_instances))
        return list(labels), list(boxes)

    def _targets_of_image(self, anchors: Boxes, gt: Instances) -> tuple[Tensor, Tensor]:
        """The same for one image, the anchors of all feature maps together."""
        gt_boxes: Boxes = gt.gt_boxes

        def match() -> tuple[Tensor, Tensor]:
            # The largest matrices of all, so this may fall back to the CPU.
            overlaps = retry_if_cuda_oom(pairwise_iou)(gt_boxes, anchors)
            return retry_if_cuda_oom(self.anchor_matcher)(overlaps)

        index, labels = (result.to(gt_boxes.device) for result in match())
        if self.anchor_boundary_thresh >= 0:
            inside = anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)  # type: ignore[arg-type]
            labels = labels.masked_fill(~inside, -1)
        boxes = gt_boxes.tensor[index] if len(gt_boxes) else torch.zeros_like(anchors.tensor)
        return self._subsample_labels(labels), boxes

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
        labels = torch.stack(gt_labels)
        sampled = labels >= 0
        logits = cat(pred_objectness_logits, dim=1)[sampled]
        chosen = labels[sampled].float()
        sums = {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(logits, chosen, reduction="sum"),
            "loss_rpn_loc": _dense_box_regression_loss(
                anchors,
                self.box2box_transform,
                pred_anchor_deltas,
                gt_boxes,
                labels == 1,
                self.box_reg_loss_type,
                self.smooth_l1_beta,
            ),
        }
        num_images, num_positive = len(labels), int(chosen.sum().item())
        counts = {"pos": num_positive, "neg": len(chosen) - num_positive}
        for kind, count in counts.items():
            get_event_storage().put_scalar(f"rpn/num_{kind}_anchors", count / num_images)
        sample_size = self.batch_size_per_image * num_images
        return weigh({name: loss / sample_size for name, loss in sums.items()}, self.loss_weight)

    @torch.no_grad()  # the heads take proposals as given
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the predictions and choose the best; shapes as in :meth:`losses`."""
        boxes = self._decode_proposals(anchors, pred_anchor_deltas)
        topk = (self.pre_nms_topk[self.training], self.post_nms_topk[self.training])
        limits = (self.nms_thresh, *topk, self.min_box_size)
        return find_top_rpn_proposals(boxes, pred_objectness_logits, image_sizes, *limits, training=self.training)

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """For each feature map the boxes (N, H * W * A, 4) that the codes stand for."""

        def decode(boxes: Tensor, deltas: Tensor) -> Tensor:
            boxes = boxes.expand_as(deltas).flatten(0, 1)  # of every image
            return self.box2box_transform.apply_deltas(deltas.flatten(0, 1), boxes).view_as(deltas)

        return [decode(boxes.tensor, deltas) for boxes, deltas in zip(anchors, pred_anchor_deltas)]
