"""Detections and semantic scores in the resolution of the original image."""

from __future__ import annotations

import pytest
import torch
from d2_access import d2_module

from elsa_det import d2


def detections(boxes: list[list[float]], **fields) -> d2.Instances:
    instances = d2.Instances((10, 20), pred_boxes=d2.Boxes(torch.tensor(boxes).reshape(-1, 4)))
    for name, value in fields.items():
        instances.set(name, value)
    return instances


def test_boxes_are_scaled_clipped_and_dropped_if_empty():
    given = detections([[1, 2, 3, 4], [-5, 0, 0, 9], [10, 5, 40, 50]], scores=torch.tensor([0.9, 0.8, 0.7]))
    result = d2.detector_postprocess(given, 30, 40)
    assert result.image_size == (30, 40)
    assert result.pred_boxes.tensor.tolist() == [[2, 6, 6, 12], [20, 15, 40, 30]]
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.7]))


def test_masks_are_pasted():
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1  # the left half
    result = d2.detector_postprocess(detections([[4, 2, 8, 6]], pred_masks=masks), 10, 20)
    expected = torch.zeros(10, 20, dtype=torch.bool)
    expected[2:6, 4:6] = True
    assert result.pred_masks.dtype == torch.bool
    assert torch.equal(result.pred_masks[0], expected)
    soft = torch.full((1, 1, 4, 4), 0.4)
    low = d2.detector_postprocess(detections([[4, 2, 8, 6]], pred_masks=soft), 10, 20, mask_threshold=0.3)
    high = d2.detector_postprocess(detections([[4, 2, 8, 6]], pred_masks=soft), 10, 20)
    assert (low.pred_masks.sum().item(), high.pred_masks.sum().item()) == (16, 0)


def test_no_detections():
    result = d2.detector_postprocess(detections([], pred_masks=torch.zeros(0, 1, 4, 4)), 30, 40)
    assert len(result) == 0
    assert result.pred_masks.shape == (0, 30, 40)
    assert result.pred_masks.dtype == torch.bool


def test_proposals_and_boxless_results():
    proposals = d2.Instances((10, 20), proposal_boxes=d2.Boxes(torch.tensor([[1.0, 1.0, 2.0, 2.0]])))
    assert d2.detector_postprocess(proposals, 20, 20).proposal_boxes.tensor.tolist() == [[1, 2, 2, 4]]
    with pytest.raises((AssertionError, ValueError)):
        d2.detector_postprocess(d2.Instances((10, 20), scores=torch.zeros(1)), 20, 20)


def test_semantic_scores_lose_the_padding():
    scores = torch.zeros(1, 4, 4)
    scores[0, :2, :2] = torch.tensor([[0.0, 4.0], [8.0, 12.0]])
    scores[0, 2:] = -99
    result = d2_module("modeling.postprocessing").sem_seg_postprocess(scores, (2, 2), 2, 4)
    torch.testing.assert_close(result, torch.tensor([[[0.0, 1.0, 3.0, 4.0], [8.0, 9.0, 11.0, 12.0]]]))
