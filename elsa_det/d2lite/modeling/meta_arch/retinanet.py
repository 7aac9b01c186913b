"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017).

Letters for shapes: N images, L feature maps, A anchors at a cell, K classes, R anchors of all feature maps of an image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from ...layers import CycleBatchNormList, ShapeSpec, batched_nms, cat, get_norm
from ...structures import Boxes, ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ..backbone import Backbone
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from .build import META_ARCH_REGISTRY
from .dense_detector import DenseDetector

__all__ = ["RetinaNet"]

_FIRST_NORMALIZER = 100.0  # positive anchors in a batch; the average starts here

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """Classifies and moves the anchors of all feature maps at once; focal loss stands in for sampling."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str | None = "BGR",
    ) -> None:
        """
        Args:
            backbone, head_in_features, pixel_mean, pixel_std: see :class:`DenseDetector`.
            head: feature maps to class logits and box codes, as :class:`RetinaNetHead`.
            anchor_generator: makes the anchors of each feature map.
            box2box_transform: how boxes are coded relative to anchors.
            anchor_matcher: labels anchors by their IoU with the ground truth.
            num_classes: K; the head must have the same.
            focal_loss_alpha: weight of positive labels, in [0, 1]; below 0 for none.
            focal_loss_gamma: exponent that turns down the well classified, 0 or above.
            smooth_l1_beta: where smooth L1 turns from L2 to L1; 0 is plain L1.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            test_score_thresh: detections must score more, in [0, 1].
            test_topk_candidates: the most detections of an image and a feature map before NMS.
            test_nms_thresh: IoU above which NMS drops the lower-scored box of the same class.
            max_detections_per_image: the most detections of an image.
            vis_period: if above 0, a picture of ground truth and detections goes to the event storage every so many
                iterations.
            input_format: order of the channels, for these pictures.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.anchor_generator, self.anchor_matcher = anchor_generator, anchor_matcher
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha, self.focal_loss_gamma = focal_loss_alpha, focal_loss_gamma
        self.smooth_l1_beta, self.box_reg_loss_type = smooth_l1_beta, box_reg_loss_type
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_candidates, self.max_detections_per_image = test_topk_candidates, max_detections_per_image
        self.vis_period, self.input_format = vis_period, input_format

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Sequence[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``, divided by a moving average of the positive anchors in a batch.

        Args:
            anchors: for each feature map (H * W * A, 4).
            pred_logits: for each feature map (N, H * W * A, K).
            gt_labels: for each image (R,), from :meth:`label_anchors`.
            pred_anchor_deltas: for each feature map (N, H * W * A, 4).
            gt_boxes: for each image (R, 4), from :meth:`label_anchors`.
        """
        labels = torch.stack(gt_labels)
        counted = labels >= 0
        positive = counted & (labels != self.num_classes)
        num_positive = int(positive.sum().item())
        get_event_storage().put_scalar("num_pos_anchors", num_positive / len(labels))
        normalizer = self._ema_update("loss_normalizer", max(num_positive, 1), _FIRST_NORMALIZER)

        logits = cat(pred_logits, dim=1)[counted]
        # One column more than classes takes the background, and goes: its row is all 0.
        one_hot = F.one_hot(labels[counted], self.num_classes + 1)[:, :-1]
        sums = {
            "loss_cls": sigmoid_focal_loss(
                logits, one_hot.to(logits.dtype), self.focal_loss_alpha, self.focal_loss_gamma, reduction="sum"
            ),
            "loss_box_reg": _dense_box_regression_loss(
                anchors,
                self.box2box_transform,
                pred_anchor_deltas,
                gt_boxes,
                positive,
                self.box_reg_loss_type,
                self.smooth_l1_beta,
            ),
        }
        return {name: loss / normalizer for name, loss in sums.items()}

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """What each anchor should say.

        Args:
            anchors: for each feature map (H * W * A, 4).
            gt_instances: for each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            For each image labels (R,) int64 (0 to K - 1 classes, K background, -1 ignored) and the boxes (R, 4) that
            the anchors belong to, which mean nothing for background and ignored ones.
        """
        everywhere = Boxes.cat(anchors)
        labels, boxes = [], []
        for objects in gt_instances:
            index, kind = self.anchor_matcher(pairwise_iou(objects.gt_boxes, everywhere))
            if len(objects) == 0:  # there is nothing that an index could stand for
                labels.append(torch.full_like(index, self.num_classes))
                boxes.append(torch.zeros_like(everywhere.tensor))
                continue
            label = objects.gt_classes[index]
            label[kind == 0] = self.num_classes
            label[kind == -1] = -1
            labels.append(label)
            boxes.append(objects.gt_boxes.tensor[index])
        return labels, boxes

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Sequence[list[Tensor]]
    ) -> list[Instances]:
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(anchors, [x[i].sigmoid() for x in logits], [x[i] for x in deltas], size)
            for i, size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """The detections of one image, best first: the best of each feature map, then NMS in each class.

        Args:
            anchors: for each feature map (H * W * A, 4).
            box_cls: for each feature map scores (H * W * A, K), in [0, 1].
            box_delta: for each feature map box codes (H * W * A, 4).
            image_size: (height, width).
        """
        found = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size
        )
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]


def _level_norms(norm: Any, levels: int) -> Any:
    """``norm`` by name, or, for batch norms, one with statistics of its own for each feature map."""
    own_statistics = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
    if norm in own_statistics:
        logger.info("RetinaNetHead: %s keeps statistics of its own for each of %d feature maps.", norm, levels)
        return partial(_cycling_norm, own_statistics[norm], levels)
    if isinstance(get_norm(norm, 32), nn.modules.batchnorm._BatchNorm):
        logger.warning("RetinaNetHead: norm=%s shares its statistics between feature maps, which may work badly.", norm)
    return norm


def _cycling_norm(bn_class: type[nn.Module], levels: int, channels: int) -> nn.Module:
    return CycleBatchNormList(levels, bn_class, num_features=channels)


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, for classes and for boxes, shared by all feature maps."""

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module] | None = "",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: of every feature map; they have the same number of channels.
            num_classes: K.
            num_anchors: A, the same for every feature map.
            conv_dims: output channels of the convolutions in each tower.
            norm: for :func:`~elsa_det.d2lite.layers.get_norm`, after each of these. "BN" and "SyncBN" keep
                statistics of their own for each feature map.
            prior_prob: score of every class at the start of training, in (0, 1).

        Raises:
            ValueError: no feature map, one of unknown channels, no convolution, or a prior outside of (0, 1).
        """
        super().__init__()
        channels = input_shape[0].channels if input_shape else None
        if channels is None or not conv_dims:
            raise ValueError(
                f"RetinaNetHead needs maps with channels, and convolutions, got input_shape={list(input_shape)}, "
                f"conv_dims={list(conv_dims)}."
            )
        if not 0 < prior_prob < 1:
            raise ValueError(f"RetinaNetHead: prior_prob must lie in (0, 1), got {prior_prob}.")
        self._num_features = len(input_shape)
        make_norm = _level_norms(norm, self._num_features)

        towers: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        for in_channels, out_channels in pairwise([channels, *conv_dims]):
            for tower in towers:
                tower.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
                if (normalization := get_norm(make_norm, out_channels)) is not None:
                    tower.append(normalization)
                tower.append(nn.ReLU())
        self.cls_subnet, self.bbox_subnet = (nn.Sequential(*tower) for tower in towers)
        self.cls_score, self.bbox_pred = (
            nn.Conv2d(conv_dims[-1], num_anchors * numbers, kernel_size=3, padding=1) for numbers in (num_classes, 4)
        )
        for layer in self.modules():  # in the order above: seeded runs depend on the order of draws
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each feature map (N, C, H, W) class logits (N, A * K, H, W) and box codes (N, A * 4, H, W).

        Raises:
            ValueError: another number of feature maps than in ``input_shape``.
        """
        if len(features) != self._num_features:
            raise ValueError(f"RetinaNetHead is made for {self._num_features} feature maps and got {len(features)}.")
        logits, box_codes = [], []
        for feature in features:
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_codes.append(self.bbox_pred(self.bbox_subnet(feature)))
        return logits, box_codes
