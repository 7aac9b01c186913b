"""Masks of regions: loss and events by hand, choice of the class, weights."""

from __future__ import annotations

import math

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2


def foreground(classes: list[int]) -> d2.Instances:
    """Regions of 8 x 8 pixels, each with an object in its left quarter."""
    masks = torch.zeros(len(classes), 8, 8, dtype=torch.bool)
    masks[:, :, :2] = True
    boxes = d2.Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(len(classes), 1))
    return d2.Instances(
        (8, 8), proposal_boxes=boxes, gt_classes=torch.tensor(classes, dtype=torch.int64), gt_masks=d2.BitMasks(masks)
    )


def loss_and_events(logits: torch.Tensor, instances: list[d2.Instances]) -> tuple[torch.Tensor, dict[str, float]]:
    with d2.EventStorage() as storage:
        loss = d2_module("modeling.roi_heads.mask_head").mask_rcnn_loss(logits, instances)
    return loss, {name: value for name, (value, _) in storage.latest().items()}


def test_loss_is_of_the_true_class():
    logits = torch.full((2, 3, 4, 4), 50.0)
    logits[0, 2] = logits[1, 0] = 0.0
    empty = foreground([])
    empty.remove("gt_masks")  # as in images without ground truth
    loss, events = loss_and_events(logits, [foreground([2]), empty, foreground([0])])
    assert loss.item() == pytest.approx(math.log(2))
    assert events == {"mask_rcnn/accuracy": 0.75, "mask_rcnn/false_positive": 0.0, "mask_rcnn/false_negative": 1.0}


def test_class_agnostic_loss():
    logits = torch.full((1, 1, 4, 4), -math.log(3))  # a probability of 1/4
    logits[..., :2] = math.log(3)  # 3/4 in the left half, of which one column is the object
    loss, events = loss_and_events(logits, [foreground([2])])
    assert loss.item() == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    assert events["mask_rcnn/accuracy"] == 0.75
    assert events["mask_rcnn/false_positive"] == pytest.approx(1 / 3)
    assert events["mask_rcnn/false_negative"] == 0.0


def test_loss_without_foreground_is_zero_and_differentiable():
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss, events = loss_and_events(logits, [foreground([])])
    loss.backward()
    assert (loss.item(), events) == (0.0, {})
    assert logits.grad is not None


def test_inference_takes_the_predicted_class():
    logits = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).repeat(3, 1, 2, 2)
    first = d2.Instances((8, 8), pred_classes=torch.tensor([2, 1]))
    second = d2.Instances((8, 8), pred_classes=torch.tensor([0]))
    none = d2.Instances((8, 8), pred_classes=torch.zeros(0, dtype=torch.int64))
    d2_module("modeling.roi_heads.mask_head").mask_rcnn_inference(logits, [first, none, second])
    torch.testing.assert_close(first.pred_masks[:, 0, 0, 0], torch.tensor([1.0, 0.0]).sigmoid())
    assert first.pred_masks.shape == (2, 1, 2, 2)
    assert none.pred_masks.shape == (0, 1, 2, 2)
    torch.testing.assert_close(second.pred_masks[0, 0], torch.full((2, 2), -1.0).sigmoid())
    d2_module("modeling.roi_heads.mask_head").mask_rcnn_inference(torch.zeros(1, 1, 2, 2), [second])
    assert second.pred_masks.tolist() == [[[[0.5, 0.5], [0.5, 0.5]]]]


def test_head():
    shape = d2.ShapeSpec(channels=3, height=4, width=4)
    head = d2.MaskRCNNConvUpsampleHead(shape, num_classes=2, conv_dims=[4, 5, 6], loss_weight=3.0)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items() if name.endswith("weight")} == {
        "mask_fcn1.weight": (4, 3, 3, 3),
        "mask_fcn2.weight": (5, 4, 3, 3),
        "deconv.weight": (5, 6, 2, 2),
        "predictor.weight": (2, 6, 1, 1),
    }
    assert [name for name, _ in head.named_children()] == [
        "mask_fcn1",
        "mask_fcn2",
        "deconv",
        "deconv_relu",
        "predictor",
    ]
    assert head.layers(torch.zeros(5, 3, 4, 4)).shape == (5, 2, 8, 8)
    assert head.layers(torch.zeros(0, 3, 4, 4)).shape == (0, 2, 8, 8)
    nn.init.zeros_(head.predictor.weight)
    with d2.EventStorage():
        losses = head(torch.randn(1, 3, 4, 4), [foreground([1])])
    assert list(losses) == ["loss_mask"]
    assert losses["loss_mask"].item() == pytest.approx(3 * math.log(2))
    detections = [d2.Instances((8, 8), pred_classes=torch.tensor([1]))]
    assert head.eval()(torch.randn(1, 3, 4, 4), detections)[0].pred_masks.unique().tolist() == [0.5]
    with_norm = d2.MaskRCNNConvUpsampleHead(shape, num_classes=2, conv_dims=[4, 4], conv_norm="LN")
    assert "mask_fcn1.norm.weight" in with_norm.state_dict()
    assert "mask_fcn1.bias" not in with_norm.state_dict()
    with pytest.raises((AssertionError, ValueError)):
        d2.MaskRCNNConvUpsampleHead(shape, num_classes=2, conv_dims=[])


def test_weights_are_drawn_after_all_layers_are_made():
    torch.manual_seed(4)
    head = d2.MaskRCNNConvUpsampleHead(d2.ShapeSpec(channels=3), num_classes=2, conv_dims=[4, 5])
    torch.manual_seed(4)
    conv, deconv, predictor = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 5, 2), nn.Conv2d(5, 2, 1)
    for layer in (conv, deconv):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(predictor.weight, std=0.001)
    for mine, expected in ((head.mask_fcn1, conv), (head.deconv, deconv), (head.predictor, predictor)):
        assert torch.equal(mine.weight, expected.weight)
