"""Box head, class scores and boxes of regions: losses by hand, detections, weights."""

from __future__ import annotations

import math

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2


def proposals(boxes: list[list[float]], classes: list[int], gt: list[list[float]] | None = None) -> d2.Instances:
    instances = d2.Instances((50, 60), proposal_boxes=d2.Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if gt is not None:
        instances.gt_boxes = d2.Boxes(torch.tensor(gt).float().reshape(-1, 4))
    return instances


def make(num_classes: int = 3, **changes) -> d2.FastRCNNOutputLayers:
    arguments = {"box2box_transform": d2.Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)), "num_classes": num_classes}
    return d2.FastRCNNOutputLayers(d2.ShapeSpec(channels=4), **{**arguments, **changes})


# ---------------------------------------------------------------- detections


def detect(boxes, scores, score_thresh=0.05, nms_thresh=0.5, topk=10):
    inference = d2_module("modeling.roi_heads.fast_rcnn").fast_rcnn_inference
    arguments = torch.tensor(boxes).float(), torch.tensor(scores).float()
    (result,), (regions,) = inference([arguments[0]], [arguments[1]], [(50, 60)], score_thresh, nms_thresh, topk)
    return result, regions.tolist()


SHARED = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 90, 40]]
SCORES = [[0.6, 0.3, 0.1], [0.5, 0.0, 0.5], [0.0, 0.9, 0.1]]  # two classes and the background


def test_detections_with_shared_boxes():
    result, regions = detect(SHARED, SCORES)
    assert result.image_size == (50, 60)
    assert result.pred_boxes.tensor.tolist() == [[20, 20, 60, 40], [0, 0, 10, 10], [0, 0, 10, 10]]
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.6, 0.3]))
    assert result.pred_classes.tolist() == [1, 0, 1]
    assert regions == [2, 0, 0]


def test_detections_with_a_box_for_each_class():
    boxes = [[0, 0, 10, 10, 30, 0, 40, 10], [1, 1, 2, 2, 3, 3, 4, 4]]
    result, regions = detect(boxes, [[0.2, 0.7, 0.1], [0.0, 0.01, 0.99]])
    assert result.pred_boxes.tensor.tolist() == [[30, 0, 40, 10], [0, 0, 10, 10]]
    assert (result.pred_classes.tolist(), regions) == ([1, 0], [0, 0])


def test_thresholds_and_top_k():
    assert len(detect(SHARED, SCORES, nms_thresh=0.95)[0]) == 4
    assert detect(SHARED, SCORES, topk=1)[1] == [2]
    assert len(detect(SHARED, SCORES, topk=-1)[0]) == 3
    assert detect(SHARED, SCORES, score_thresh=0.6)[0].pred_classes.tolist() == [1]  # only what is above
    nothing, regions = detect(SHARED, SCORES, score_thresh=0.95)
    assert (len(nothing), regions) == (0, [])
    assert nothing.pred_boxes.tensor.shape == (0, 4)


def test_detections_without_regions_and_with_bad_numbers():
    inference = d2_module("modeling.roi_heads.fast_rcnn").fast_rcnn_inference
    (result,), _ = inference([torch.zeros(0, 8)], [torch.zeros(0, 3)], [(50, 60)], 0.0, 0.5, 10)
    assert len(result) == 0
    result, _ = detect(SHARED, [SCORES[0], SCORES[1], [float("nan"), 0.9, 0.1]])
    torch.testing.assert_close(result.scores, torch.tensor([0.6, 0.3]))


def test_inference_of_the_module():
    layers = make(num_classes=2, test_score_thresh=0.4, test_topk_per_image=1)
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    deltas = torch.zeros(2, 8)
    deltas[0, 0] = 1.0  # class 0 of the first region: one width to the right
    regions = [proposals([[0, 0, 10, 10]], [0]), proposals([[5, 5, 9, 9]], [0])]
    first, second = layers.inference((logits, deltas), regions)[0]
    assert first.pred_boxes.tensor.tolist() == [[10, 0, 20, 10]]
    assert second.pred_boxes.tensor.tolist() == [[5, 5, 9, 9]]
    assert (first.scores.item(), second.scores.item()) == (pytest.approx(0.5), pytest.approx(0.8))
    assert (first.pred_classes.item(), second.pred_classes.item()) == (0, 1)
    of_truth = layers.predict_boxes_for_gt_classes((logits, deltas), regions)
    assert [boxes.tolist() for boxes in of_truth] == [[[10, 0, 20, 10]], [[5, 5, 9, 9]]]
    assert [tuple(boxes.shape) for boxes in layers.predict_boxes((logits, deltas), regions)] == [(1, 8), (1, 8)]
    sigmoid = make(num_classes=2, use_sigmoid_ce=True).predict_probs((torch.zeros(2, 3), deltas), regions)
    assert sigmoid[0].tolist() == [[0.5, 0.5, 0.5]]


# ---------------------------------------------------------------- losses

BATCH = [
    proposals([[0, 0, 10, 10], [0, 0, 20, 20]], [1, 3], gt=[[5, 0, 15, 10], [0, 0, 1, 1]]),  # 3 is the background
    proposals([[3, 3, 6, 6], [4, 4, 8, 8]], [3, 3]),  # an image without ground truth
]


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_by_hand(agnostic):
    layers = make(cls_agnostic_bbox_reg=agnostic, loss_weight={"loss_box_reg": 4.0})
    logits = torch.zeros(4, 4)
    logits[0, 1] = math.log(3)  # the class of the first region gets 3 / 6, and the others 1 / 4
    with d2.EventStorage() as storage:
        losses = layers.losses((logits, torch.zeros(4, 4 if agnostic else 12)), BATCH)
    assert losses["loss_cls"].item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)
    assert losses["loss_box_reg"].item() == pytest.approx(4 * 0.5 / 4)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"fast_rcnn/cls_accuracy": 0.25, "fast_rcnn/fg_cls_accuracy": 1.0, "fast_rcnn/false_negative": 0.0}


def test_sigmoid_loss_counts_missed_objects():
    layers = make(use_sigmoid_ce=True, loss_weight=2.0)
    logits = torch.zeros(4, 4)
    logits[:, 3] = 1.0  # everything is background to the model; this column is no part of the loss
    with d2.EventStorage() as storage:
        losses = layers.losses((logits, torch.zeros(4, 12)), BATCH)
    assert losses["loss_cls"].item() == pytest.approx(2 * 3 * math.log(2))
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"fast_rcnn/cls_accuracy": 0.75, "fast_rcnn/fg_cls_accuracy": 0.0, "fast_rcnn/false_negative": 1.0}


@pytest.mark.parametrize("sigmoid", [False, True])
def test_losses_without_regions(sigmoid):
    layers = make(use_sigmoid_ce=sigmoid)
    predictions = layers(torch.zeros(0, 4, requires_grad=True))
    with d2.EventStorage() as storage:
        losses = layers.losses(predictions, [proposals([], []), proposals([], [])])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_cls": 0.0, "loss_box_reg": 0.0}
    assert storage.latest() == {}


# ---------------------------------------------------------------- weights


def test_output_layers():
    layers = make()
    assert {name: tuple(value.shape) for name, value in layers.state_dict().items()} == {
        "cls_score.weight": (4, 4),
        "cls_score.bias": (4,),
        "bbox_pred.weight": (12, 4),
        "bbox_pred.bias": (12,),
    }
    assert make(cls_agnostic_bbox_reg=True).bbox_pred.out_features == 4
    spatial = d2.FastRCNNOutputLayers(
        d2.ShapeSpec(channels=4, height=2, width=3), box2box_transform=layers.box2box_transform, num_classes=3
    )
    scores, deltas = spatial(torch.zeros(5, 4, 2, 3))
    assert (scores.shape, deltas.shape) == ((5, 4), (5, 12))
    assert (layers.test_score_thresh, layers.test_nms_thresh, layers.test_topk_per_image) == (0.0, 0.5, 100)


def test_output_weights_are_drawn_in_order():
    torch.manual_seed(1)
    layers = make()
    torch.manual_seed(1)
    cls_score, bbox_pred = nn.Linear(4, 4), nn.Linear(4, 12)
    assert torch.equal(layers.cls_score.weight, nn.init.normal_(cls_score.weight, std=0.01))
    assert torch.equal(layers.bbox_pred.weight, nn.init.normal_(bbox_pred.weight, std=0.001))


def test_box_head():
    shape = d2.ShapeSpec(channels=3, height=2, width=2)
    head = d2.FastRCNNConvFCHead(shape, conv_dims=[4], fc_dims=[6, 5], conv_norm="LN")
    assert list(head.state_dict()) == [
        "conv1.weight",
        "conv1.norm.weight",
        "conv1.norm.bias",
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    ]
    assert [name for name, _ in head.named_children()] == ["conv1", "flatten", "fc1", "fc_relu1", "fc2", "fc_relu2"]
    assert head.output_shape == d2.ShapeSpec(channels=5)
    out = head(torch.randn(7, 3, 2, 2))
    assert out.shape == (7, 5)
    assert out.min() >= 0
    assert head(torch.zeros(0, 3, 2, 2)).shape == (0, 5)
    convolutional = d2.FastRCNNConvFCHead(shape, conv_dims=[4], fc_dims=[])
    assert convolutional.output_shape == d2.ShapeSpec(channels=4, height=2, width=2)
    with pytest.raises((AssertionError, ValueError)):
        d2.FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[])


def test_box_head_weights_are_drawn_after_all_layers_are_made():
    torch.manual_seed(2)
    head = d2.FastRCNNConvFCHead(d2.ShapeSpec(channels=3, height=2, width=2), conv_dims=[4], fc_dims=[6])
    torch.manual_seed(2)
    conv, fc = nn.Conv2d(3, 4, 3), nn.Linear(16, 6)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.kaiming_uniform_(fc.weight, a=1)
    assert torch.equal(head.conv1.weight, conv.weight)
    assert torch.equal(head.fc1.weight, fc.weight)
