"""Fast R-CNN (Girshick, ICCV 2015): classes and boxes of regions.

Letters for shapes: R regions of all images, K foreground classes; class K is the background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import ShapeSpec, batched_nms, cat, cross_entropy
from ...structures import Boxes, Instances
from ...utils.events import get_event_storage
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference"]


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """Detections of each image.

    Args:
        boxes: for each image (its regions, K * 4), or (its regions, 4) where classes share boxes; in pixels.
        scores: for each image probabilities (its regions, K + 1), background last.
        image_shapes: (height, width) of each image.
        score_thresh: only detections with a higher score are kept.
        nms_thresh: IoU above which the lower-scored detection of the same class goes.
        topk_per_image: how many to keep of each image; all if below 0.

    Returns:
        For each image Instances with ``pred_boxes``, ``scores``, ``pred_classes``, best first,
        and the index of the region that each detection comes from.
    """
    per_image = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes)
    ]
    return [detections for detections, _ in per_image], [regions for _, regions in per_image]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """The same for one image. Regions with Inf or NaN are dropped."""
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    region_ids = torch.nonzero(finite).flatten()
    if len(region_ids) < len(boxes):
        boxes, scores = boxes[region_ids], scores[region_ids]

    region, category = torch.nonzero(scores[:, :-1] > score_thresh, as_tuple=True)
    scores = scores[region, category]
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    by_class = clipped.tensor.view(len(boxes), boxes.shape[1] // 4, 4)
    boxes = by_class[region, category if by_class.shape[1] > 1 else 0]

    keep = batched_nms(boxes, scores, category, nms_thresh)  # sorted by score
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    detections = Instances(image_shape, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=category[keep])
    return detections, region_ids[region[keep]]


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Put accuracy to the event storage: over all regions, over foreground ones, and how many of these were missed.

    ``pred_logits``: (R, K + 1), ``gt_classes``: (R,).
    """
    if gt_classes.numel() == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    correct = predicted == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    counts = torch.stack(
        [correct.sum(), foreground.sum(), (correct & foreground).sum(), (foreground & (predicted == background)).sum()]
    )
    num_correct, num_foreground, num_foreground_correct, num_missed = counts.tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_correct / gt_classes.numel())
    if num_foreground > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_foreground_correct / num_foreground)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_foreground)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers, for class scores and for box codes, with their losses and inference."""

    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | Mapping[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable[[], Tensor] | None = None,
        fed_loss_num_classes: int = 50,
    ) -> None:
        """
        Args:
            input_shape: of the features of a region, or just their number.
            box2box_transform: how boxes are coded relative to proposals.
            num_classes: K.
            test_score_thresh, test_nms_thresh, test_topk_per_image: as in :func:`fast_rcnn_inference`.
            cls_agnostic_bbox_reg: one box for all classes of a region instead of one for each.
            smooth_l1_beta: where smooth L1 turns from L2 to L1; 0 is plain L1.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            loss_weight: factor of the losses, or one for each of "loss_cls" and "loss_box_reg".
            use_fed_loss, get_fed_loss_cls_weights, fed_loss_num_classes: the federated loss is not part of d2lite.
            use_sigmoid_ce: an independent sigmoid for each class instead of a softmax.

        Raises:
            NotImplementedError: ``use_fed_loss`` is set.
        """
        super().__init__()
        if use_fed_loss:
            raise NotImplementedError(
                "FastRCNNOutputLayers: use_fed_loss=True is not part of d2lite; install Detectron2, or leave it off."
            )
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        num_inputs = (input_shape.channels or 1) * (input_shape.height or 1) * (input_shape.width or 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        self.cls_score = nn.Linear(num_inputs, num_classes + 1)
        self.bbox_pred = nn.Linear(num_inputs, num_boxes * len(box2box_transform.weights))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

        self.num_classes = num_classes
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, Mapping):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_fed_loss = use_fed_loss
        self.use_sigmoid_ce = use_sigmoid_ce
        self.fed_loss_num_classes = fed_loss_num_classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, ...) to class logits (R, K + 1) and box codes (R, K * 4), or (R, 4) if class-agnostic."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``, both means over all regions.

        Args:
            predictions: from :meth:`forward`.
            proposals: for each image its regions with ``proposal_boxes``, ``gt_classes`` and, unless all of them are
                background, ``gt_boxes``.
        """
        scores, deltas = predictions
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
            # Images without ground truth have no gt_boxes: any boxes do, as background regions are not regressed.
            gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
            assert not proposal_boxes.requires_grad, "proposals are constants to the box head"
        else:
            gt_classes = torch.empty(0, dtype=torch.int64, device=scores.device)
            proposal_boxes = gt_boxes = torch.empty((0, 4), device=deltas.device)
        _log_classification_stats(scores, gt_classes)
        if self.use_sigmoid_ce:
            loss_cls = self.sigmoid_cross_entropy_loss(scores, gt_classes)
        else:
            loss_cls = cross_entropy(scores, gt_classes, reduction="mean")
        loss_box_reg = self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes)
        losses = {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross entropy of logits (R, K + 1) without the background: summed over classes, mean over regions."""
        if pred_class_logits.numel() == 0:
            return pred_class_logits.sum() * 0.0
        targets = torch.zeros_like(pred_class_logits)
        targets[torch.arange(len(targets), device=targets.device), gt_classes] = 1
        loss = F.binary_cross_entropy_with_logits(pred_class_logits[:, :-1], targets[:, :-1], reduction="none")
        return loss.sum() / len(pred_class_logits)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Regression loss of the foreground divided by the number of all regions, so that every foreground region
        counts the same however many there are.

        Args:
            proposal_boxes: (R, 4).
            gt_boxes: (R, 4).
            pred_deltas: (R, K * 4) or (R, 4).
            gt_classes: (R,).
        """
        foreground = torch.nonzero((gt_classes >= 0) & (gt_classes < self.num_classes)).flatten()
        if pred_deltas.shape[1] == proposal_boxes.shape[1]:
            deltas = pred_deltas[foreground]
        else:
            deltas = pred_deltas.unflatten(1, (self.num_classes, -1))[foreground, gt_classes[foreground]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[foreground]],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes[foreground]],
            ...,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image, see :func:`fast_rcnn_inference`; ``proposals`` need ``proposal_boxes``."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def _decode(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Tensor:
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes)

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """For each image the decoded boxes (its regions, K * 4), or (its regions, 4) if class-agnostic."""
        if not proposals:
            return []
        return self._decode(predictions, proposals).split([len(p) for p in proposals])

    def predict_boxes_for_gt_classes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """For each image the decoded boxes (its regions, 4) of the classes in ``gt_classes``."""
        if not proposals:
            return []
        boxes = self._decode(predictions, proposals).unflatten(1, (-1, 4))
        # Background and ignored regions have no class to pick a box by; any will do.
        classes = torch.cat([p.gt_classes for p in proposals]).clamp(0, boxes.shape[1] - 1)
        chosen = boxes[torch.arange(len(boxes), device=boxes.device), classes]
        return chosen.split([len(p) for p in proposals])

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """For each image the class probabilities (its regions, K + 1)."""
        scores, _ = predictions
        probabilities = scores.sigmoid() if self.use_sigmoid_ce else F.softmax(scores, dim=-1)
        return probabilities.split([len(p) for p in proposals])
