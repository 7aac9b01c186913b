"""Operators on boxes: suppression, pooling, losses."""

from __future__ import annotations

import pytest
import torch
from d2_access import d2_module


@pytest.fixture
def layers():
    return d2_module("layers")


BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10]])
SCORES = torch.tensor([0.5, 0.9, 0.7, 0.6])


def test_nms_within_groups(layers):
    assert layers.batched_nms(BOXES, SCORES, torch.tensor([0, 0, 0, 1]), 0.5).tolist() == [1, 2, 3]
    assert layers.batched_nms(BOXES, SCORES, torch.tensor([0, 0, 0, 0]), 0.5).tolist() == [1, 2]
    assert layers.batched_nms(BOXES, SCORES, torch.tensor([0, 0, 0, 0]), 0.95).tolist() == [1, 2, 3]
    assert layers.nms(BOXES, SCORES, 0.5).tolist() == [1, 2]


def test_nms_of_half_precision_tells_many_groups_apart(layers):
    # groups are told apart by shifting boxes, far beyond what float16 can count
    count = 300
    boxes = torch.tensor([[0.0, 0, 500, 500]]).repeat(count, 1).half()
    kept = layers.batched_nms(boxes, torch.linspace(1, 0, count), torch.arange(count), 0.5)
    assert kept.tolist() == list(range(count))


def test_nms_of_nothing_and_of_no_boxes(layers):
    none = torch.zeros(0, dtype=torch.long)
    assert layers.batched_nms(torch.zeros(0, 4), torch.zeros(0), none, 0.5).tolist() == []
    with pytest.raises((ValueError, AssertionError)):
        layers.batched_nms(torch.zeros(1, 5), torch.zeros(1), torch.zeros(1, dtype=torch.long), 0.5)


def test_roi_align_knows_half_pixels(layers):
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    rois = torch.tensor([[0.0, 1, 1, 3, 3]])
    # Worked by hand: bins of a pixel each, sampled at pixel centres (1.5, 1.5) and so on
    assert layers.ROIAlign((2, 2), 1.0, 1)(image, rois).flatten().tolist() == [6.0, 7.0, 11.0, 12.0]
    assert layers.ROIAlign((2, 2), 1.0, 1, aligned=False)(image, rois).flatten().tolist() == [9.0, 10.0, 14.0, 15.0]
    assert layers.ROIAlign((2, 2), 0.5, 1)(image, rois * 2).flatten().tolist() == [6.0, 7.0, 11.0, 12.0]


def test_roi_align_follows_the_input_and_takes_no_boxes(layers):
    pool = layers.ROIAlign(3, 0.25, 0)
    features = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    assert pool(features, torch.tensor([[1.0, 0, 0, 8, 8]])).dtype == torch.float64
    assert pool(features, torch.zeros(0, 5)).shape == (0, 4, 3, 3)
    with pytest.raises((ValueError, AssertionError)):
        pool(features, torch.zeros(2, 4))
    assert repr(pool) == "ROIAlign(output_size=3, spatial_scale=0.25, sampling_ratio=0, aligned=True)"
