"""From dense predictions to a list of proposals, and ground truth as proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...layers import batched_nms
from ...structures import Boxes, Instances

_GROUND_TRUTH_LOGIT = -math.log(1e-10)  # a probability of practically 1


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Choose the best proposals of each image: top k of each level, clip, drop small ones, NMS in each level, top k.

    Args:
        proposals: for each level boxes (N, H * W * A, 4), in pixels.
        pred_objectness_logits: for each level (N, H * W * A).
        image_sizes: (height, width) of each image.
        nms_thresh: IoU above which the lower-scored box goes.
        pre_nms_topk: boxes to keep of each level and image before NMS.
        post_nms_topk: boxes to keep of each image in the end.
        min_box_size: only boxes with both sides longer than this, in pixels, are kept.
        training: whether Inf and NaN are an error; otherwise such boxes are dropped.

    Returns:
        For each image Instances with ``proposal_boxes`` and ``objectness_logits``, best first.

    Raises:
        FloatingPointError: Inf or NaN in training.
    """
    level_boxes, level_scores, level_ids = [], [], []
    for level, (boxes, logits) in enumerate(zip(proposals, pred_objectness_logits)):
        scores, order = logits.topk(min(logits.shape[1], pre_nms_topk), dim=1)
        level_boxes.append(boxes.gather(1, order[..., None].expand(-1, -1, 4)))
        level_scores.append(scores)
        level_ids.append(order.new_full((order.shape[1],), level))
    all_boxes, all_scores, levels = torch.cat(level_boxes, 1), torch.cat(level_scores, 1), torch.cat(level_ids)
    return [
        _best_of_image(
            Boxes(boxes), scores, levels, image_size, nms_thresh, post_nms_topk, min_box_size, strict=training
        )
        for boxes, scores, image_size in zip(all_boxes, all_scores, image_sizes)
    ]


def _best_of_image(
    boxes: Boxes,
    scores: Tensor,
    levels: Tensor,
    image_size: tuple[int, int],
    nms_thresh: float,
    topk: int,
    min_box_size: float,
    strict: bool,
) -> Instances:
    finite = torch.isfinite(boxes.tensor).all(dim=1) & torch.isfinite(scores)
    if not finite.all():
        if strict:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        boxes, scores, levels = boxes[finite], scores[finite], levels[finite]
    boxes.clip(image_size)
    large = boxes.nonempty(threshold=min_box_size)
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    keep = batched_nms(boxes.tensor, scores, levels, nms_thresh)[:topk]  # sorted by score
    return Instances(image_size, proposal_boxes=boxes[keep], objectness_logits=scores[keep])


def add_ground_truth_to_proposals(gt: Sequence[Instances | Boxes], proposals: list[Instances]) -> list[Instances]:
    """Append to the proposals of each image its ground-truth boxes.

    Raises:
        ValueError: ``gt`` and ``proposals`` are not of the same number of images.
    """
    if len(gt) != len(proposals):
        raise ValueError(f"Ground truth of {len(gt)} images and proposals of {len(proposals)} do not belong together.")
    return [add_ground_truth_to_proposals_single_image(g, p) for g, p in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """The same for one image. The appended boxes get an objectness logit for a probability of practically 1.

    Raises:
        KeyError: ``proposals`` has a field of its own, which ``gt`` lacks.
    """
    boxes = gt if isinstance(gt, Boxes) else gt.gt_boxes
    own = {} if isinstance(gt, Boxes) else gt.get_fields()
    available = {
        **own,
        "proposal_boxes": boxes,
        "objectness_logits": torch.full((len(boxes),), _GROUND_TRUTH_LOGIT, device=boxes.device),
    }
    names = list(proposals.get_fields())
    missing = [name for name in names if name not in available]
    if missing:
        raise KeyError(f"Proposals have the fields {missing}, which the ground truth lacks (it has {list(own)}).")
    appended = Instances(proposals.image_size, **{name: available[name] for name in names})
    return Instances.cat([proposals, appended])
