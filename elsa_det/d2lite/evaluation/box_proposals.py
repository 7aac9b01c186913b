"""Recall of box proposals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

from ..structures import Boxes, pairwise_iou

__all__ = ["box_proposal_recalls"]

# Suffix of the metric → range of object areas in square pixels, both ends included.
_AREA_RANGES = {"": (0**2, 1e5**2), "s": (0**2, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e5**2)}
_LIMITS = (100, 1000)
_IOU_THRESHOLDS = torch.arange(0.5, 0.95 + 1e-5, 0.05, dtype=torch.float32)


def box_proposal_recalls(predictions: list[dict[str, Any]], coco_api: COCO) -> dict[str, float]:
    """Average recall over IoU 0.5…0.95 of the best 100 and 1000 proposals, for all objects and by their size.

    An object is counted as found by one proposal, a proposal finds one object: pairs are taken in order of their
    IoU. Crowds do not count, nor do images without proposals.

    Args:
        predictions: Of each image, ``image_id`` and ``proposals``: Instances with ``proposal_boxes`` (x0, y0, x1, y1
            in pixels) and ``objectness_logits``.
        coco_api: The ground truth.

    Returns:
        ``AR@100``, ``ARs@100``, …, ``ARl@1000`` in percent; NaN where there are no objects of that size.
    """
    images = [_overlaps(prediction, coco_api) for prediction in predictions]
    recalls = {}
    for limit in _LIMITS:
        for suffix, (smallest, largest) in _AREA_RANGES.items():
            covered = [
                _cover(ious[(areas >= smallest) & (areas <= largest), :limit]) for ious, areas in images if ious.size
            ]
            coverage = torch.from_numpy(np.concatenate(covered)) if covered else torch.zeros(0)
            found = (coverage[None, :] >= _IOU_THRESHOLDS[:, None]).float()
            recalls[f"AR{suffix}@{limit}"] = found.mean(dim=1).mean().item() * 100
    return recalls


def _overlaps(prediction: dict[str, Any], coco_api: COCO) -> tuple[np.ndarray, np.ndarray]:
    """IoU (objects × proposals, the best proposal first) and the objects' areas of one image."""
    proposals = prediction["proposals"]
    order = proposals.objectness_logits.argsort(descending=True)[: max(_LIMITS)]
    annotations = coco_api.loadAnns(coco_api.getAnnIds(imgIds=prediction["image_id"]))
    objects = [annotation for annotation in annotations if annotation["iscrowd"] == 0]
    boxes = torch.tensor([annotation["bbox"] for annotation in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ious = pairwise_iou(Boxes(boxes), proposals.proposal_boxes[order])
    return ious.numpy(), np.array([annotation["area"] for annotation in objects], dtype=np.float32)


def _cover(ious: np.ndarray) -> np.ndarray:
    """IoU each object gets in a greedy matching of (objects × proposals); 0 for those left without a proposal."""
    ious = ious.copy()
    covered = np.zeros(len(ious), dtype=np.float32)
    for _ in range(min(ious.shape)):
        best_object, best_proposal = np.unravel_index(ious.argmax(), ious.shape)
        covered[best_object] = ious[best_object, best_proposal]
        ious[best_object, :] = -1
        ious[:, best_proposal] = -1
    return covered
