"""Fast R-CNN (Girshick, ICCV 2015): classes and boxes of regions.

Letters for shapes: R regions of all images, K foreground classes; class K is the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import ShapeSpec, batched_nms, cat, cross_entropy
from ...structures import Boxes, Instances
from ...utils.events import get_event_storage
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..loss_weights import LossWeight, by_name, weigh

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
    detections, regions = [], []
    for image in zip(boxes, scores, image_shapes):
        found, index = fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        detections.append(found)
        regions.append(index)
    return detections, regions


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


def _joined(parts: Sequence[Tensor], nothing: Tensor) -> Tensor:
    return cat(parts) if parts else nothing


def _of_each_image(values: Tensor, proposals: list[Instances]) -> tuple[Tensor, ...]:
    """Values of all regions, taken apart again."""
    return values.split([len(p) for p in proposals])


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
        loss_weight: LossWeight = 1.0,
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

        self.num_classes, self.box2box_transform = num_classes, box2box_transform
        self.loss_weight = by_name(loss_weight, ("loss_cls", "loss_box_reg"))
        self.use_sigmoid_ce, self.use_fed_loss = use_sigmoid_ce, use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_per_image = test_topk_per_image

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
        # Images without ground truth have no gt_boxes: any boxes do, as background regions are not regressed.
        targets = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        classes = _joined([p.gt_classes for p in proposals], scores.new_empty(0, dtype=torch.int64))
        regions = _joined([p.proposal_boxes.tensor for p in proposals], deltas.new_empty(0, 4))
        gt_boxes = _joined([boxes.tensor for boxes in targets], deltas.new_empty(0, 4))
        assert not regions.requires_grad, "proposals are constants to the box head"

        _log_classification_stats(scores, classes)
        classification = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        losses = {
            "loss_cls": classification(scores, classes),
            "loss_box_reg": self.box_reg_loss(regions, gt_boxes, deltas, classes),
        }
        return weigh(losses, self.loss_weight)

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross entropy of logits (R, K + 1) without the background: summed over classes, mean over regions."""
        if pred_class_logits.numel() == 0:
            return pred_class_logits.sum() * 0.0
        logits = pred_class_logits[:, :-1]
        classes = torch.arange(logits.shape[1], device=gt_classes.device)
        is_class = (gt_classes[:, None] == classes).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, is_class, reduction="none").sum() / len(logits)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Regression loss of the foreground divided by the number of all regions, so that every foreground region
        counts the same however many there are.

        Args:
            proposal_boxes: (R, 4).
            gt_boxes: (R, 4).
            pred_deltas: (R, K * 4) or (R, 4).
            gt_classes: (R,).
        """
        index = torch.nonzero((gt_classes >= 0) & (gt_classes < self.num_classes)).flatten()
        codes = pred_deltas.unflatten(1, (-1, proposal_boxes.shape[1]))  # (R, K or 1, 4)
        column = gt_classes[index] if codes.shape[1] > 1 else 0
        how = (self.box_reg_loss_type, self.smooth_l1_beta)
        sources, targets, deltas = proposal_boxes[index], gt_boxes[index], codes[index, column]
        loss = _dense_box_regression_loss([sources], self.box2box_transform, [deltas[None]], [targets], ..., *how)
        return loss / max(len(gt_classes), 1)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image, see :func:`fast_rcnn_inference`; ``proposals`` need ``proposal_boxes``."""
        limits = (self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image)
        sizes = [p.image_size for p in proposals]
        boxes, probabilities = (predict(predictions, proposals) for predict in (self.predict_boxes, self.predict_probs))
        return fast_rcnn_inference(boxes, probabilities, sizes, *limits)

    def _decode(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Tensor:
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes)

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """For each image the decoded boxes (its regions, K * 4), or (its regions, 4) if class-agnostic."""
        if not proposals:
            return []
        return _of_each_image(self._decode(predictions, proposals), proposals)

    def predict_boxes_for_gt_classes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """For each image the decoded boxes (its regions, 4) of the classes in ``gt_classes``."""
        if not proposals:
            return []
        boxes = self._decode(predictions, proposals).unflatten(1, (-1, 4))
        # Background and ignored regions have no class to pick a box by; any will do.
        classes = torch.cat([p.gt_classes for p in proposals]).clamp(0, boxes.shape[1] - 1)
        chosen = boxes[torch.arange(len(boxes), device=boxes.device), classes]
        return _of_each_image(chosen, proposals)

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """For each image the class probabilities (its regions, K + 1)."""
        scores, _ = predictions
        probabilities = scores.sigmoid() if self.use_sigmoid_ce else F.softmax(scores, dim=-1)
        return _of_each_image(probabilities, proposals)
