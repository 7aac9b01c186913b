"""Region proposals: choice among given boxes, targets, losses by hand, weights."""

from __future__ import annotations

import math

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2

NAN, INF = float("nan"), float("inf")


# ---------------------------------------------------------------- choosing proposals


def choose(boxes: list[list], scores: list[list], **changes) -> d2.Instances:
    """The proposals of one image of 20 x 30 pixels (height x width) from boxes and scores of each level."""
    arguments = {
        "nms_thresh": 0.5,
        "pre_nms_topk": 10,
        "post_nms_topk": 10,
        "min_box_size": 0.0,
        "training": False,
        **changes,
    }
    (result,) = d2_module("modeling.proposal_generator.proposal_utils").find_top_rpn_proposals(
        [torch.tensor(level, dtype=torch.float32)[None] for level in boxes],
        [torch.tensor(level, dtype=torch.float32)[None] for level in scores],
        [(20, 30)],
        **arguments,
    )
    assert result.image_size == (20, 30)
    assert list(result.get_fields()) == ["proposal_boxes", "objectness_logits"]
    return result


A, NEAR_A, B, OUTSIDE = [0, 0, 10, 10], [0, 0, 10, 9], [12, 0, 22, 10], [40, 0, 50, 10]


def test_nms_is_within_a_level():
    result = choose([[A, NEAR_A, B], [A]], [[1.0, 3.0, 2.0], [0.5]])
    assert result.proposal_boxes.tensor.tolist() == [NEAR_A, B, A]
    assert result.objectness_logits.tolist() == [3.0, 2.0, 0.5]


def test_top_k_of_each_level_then_of_all():
    boxes, scores = [[A, B], [A, B]], [[1.0, 4.0], [3.0, 2.0]]
    assert choose(boxes, scores, pre_nms_topk=1).objectness_logits.tolist() == [4.0, 3.0]
    assert choose(boxes, scores, post_nms_topk=3).objectness_logits.tolist() == [4.0, 3.0, 2.0]


def test_boxes_are_clipped_and_small_ones_dropped():
    result = choose([[[-5, -5, 5, 50], OUTSIDE, [25, 1, 60, 3]]], [[1.0, 2.0, 3.0]])
    assert result.proposal_boxes.tensor.tolist() == [[25, 1, 30, 3], [0, 0, 5, 20]]
    result = choose([[[-5, -5, 5, 50], [25, 1, 60, 3]]], [[1.0, 3.0]], min_box_size=2.0)
    assert result.proposal_boxes.tensor.tolist() == [[0, 0, 5, 20]]


@pytest.mark.parametrize(("box", "score"), [([0, 0, NAN, 10], 1.0), (A, NAN), ([0, 0, INF, 10], 1.0), (A, INF)])
def test_bad_numbers_stop_the_training_only(box, score):
    result = choose([[box, B]], [[score, 0.5]])
    assert result.proposal_boxes.tensor.tolist() == [B]
    with pytest.raises(FloatingPointError, match="diverged"):
        choose([[box, B]], [[score, 0.5]], training=True)


def test_ground_truth_becomes_proposals():
    add = d2_module("modeling.proposal_generator.proposal_utils").add_ground_truth_to_proposals
    proposals = d2.Instances(
        (20, 30), proposal_boxes=d2.Boxes(torch.tensor([A]).float()), objectness_logits=torch.zeros(1)
    )
    truth = d2.Instances((20, 30), gt_boxes=d2.Boxes(torch.tensor([B]).float()), gt_classes=torch.tensor([4]))
    empty = d2.Instances((20, 30), gt_boxes=d2.Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    both, only = add([truth, empty], [proposals, proposals])
    assert both.proposal_boxes.tensor.tolist() == [A, B]
    torch.testing.assert_close(both.objectness_logits, torch.tensor([0.0, 10 * math.log(10)]))
    assert set(both.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert only.proposal_boxes.tensor.tolist() == [A]
    assert add([truth.gt_boxes], [proposals])[0].proposal_boxes.tensor.tolist() == [A, B]
    assert add([], []) == []
    with pytest.raises(ValueError):
        add([truth], [proposals, proposals])


# ---------------------------------------------------------------- the module


def make_rpn(**changes) -> d2.RPN:
    """Two levels with strides 8 and 16, one anchor of 8 and 16 pixels at each cell."""
    arguments = {
        "in_features": ["p3", "p4"],
        "head": d2.StandardRPNHead(in_channels=2, num_anchors=1),
        "anchor_generator": d2.DefaultAnchorGenerator(
            sizes=[[8], [16]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5
        ),
        "anchor_matcher": d2.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": d2.Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
        "batch_size_per_image": 8,
        "positive_fraction": 0.5,
        "pre_nms_topk": (100, 10),
        "post_nms_topk": (50, 4),
        **changes,
    }
    return d2.RPN(**arguments)


def zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def inputs(num_images: int = 1):
    images = d2.ImageList(torch.zeros(num_images, 3, 32, 32), [(32, 32)] * num_images)
    features = {"p3": torch.ones(num_images, 2, 4, 4), "p4": torch.ones(num_images, 2, 2, 2)}
    return images, features


def truth(*boxes: list[float]) -> d2.Instances:
    return d2.Instances((32, 32), gt_boxes=d2.Boxes(torch.tensor(boxes).reshape(-1, 4)))


def test_anchors_are_the_proposals_of_a_zero_head():
    rpn = make_rpn().eval()
    zero(rpn)
    proposals, losses = rpn(*inputs(2))
    assert losses == {}
    assert [len(p) for p in proposals] == [4, 4]
    with d2.EventStorage():
        (in_training,), _ = rpn.train()(*inputs(), [truth()])
    boxes = in_training.proposal_boxes.tensor
    assert len(boxes) == 20
    assert {tuple(box) for box in boxes.tolist()} == {
        (float(x), float(y), float(x + s), float(y + s))
        for s in (8, 16)
        for x in range(0, 32, s)
        for y in range(0, 32, s)
    }


def test_losses_and_events_of_a_zero_head():
    # Two anchors of level p3 are exactly objects: two positives and, of eight to sample, six negatives in image 0;
    # eight negatives in image 1. The codes of the positives are 0, and so is their regression loss.
    rpn = make_rpn(loss_weight={"loss_rpn_cls": 2.0})
    zero(rpn)
    with d2.EventStorage() as storage:
        proposals, losses = rpn(*inputs(2), [truth([0.0, 0.0, 8.0, 8.0], [8.0, 16.0, 16.0, 24.0]), truth()])
    assert losses["loss_rpn_cls"].item() == pytest.approx(2 * math.log(2))
    assert losses["loss_rpn_loc"].item() == 0
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"rpn/num_pos_anchors": 1.0, "rpn/num_neg_anchors": 7.0}
    assert not proposals[0].proposal_boxes.tensor.requires_grad


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("smooth_l1", 0.25 + 0.25), ("giou", 1 - 36 / 92 + (100 - 92) / 100)]
)
def test_localization_loss_by_hand(loss_type, expected):
    # The best anchor is (0, 0, 8, 8): the object lies 2 px to the right and below.
    rpn = make_rpn(box_reg_loss_type=loss_type)
    zero(rpn)
    with d2.EventStorage():
        _, losses = rpn(*inputs(), [truth([2.0, 2.0, 10.0, 10.0])])
    assert losses["loss_rpn_loc"].item() == pytest.approx(expected / 8)


def test_labels_of_anchors():
    rpn = make_rpn(batch_size_per_image=100)
    anchors = rpn.anchor_generator(list(inputs()[1].values()))
    labels, boxes = rpn.label_and_sample_anchors(
        anchors, [truth([0.0, 0.0, 8.0, 14.0], [0.0, 0.0, 17.0, 16.0]), truth()]
    )
    # IoU of the cell anchors with the first object is 64/112 at best, a match only as its best; (0, 0, 16, 16) is the
    # second object. (0, 8, 8, 16) has 48/128 with the first one, too much for a negative.
    expected = torch.zeros(20)
    expected[[0, 16]] = 1
    expected[4] = -1
    assert labels[0].tolist() == expected.tolist()
    assert boxes[0][[0, 16]].tolist() == [[0, 0, 8, 14], [0, 0, 17, 16]]
    assert labels[1].tolist() == [0] * 20
    assert boxes[1].shape == (20, 4)


def test_anchors_outside_of_the_image_are_not_trained():
    rpn = make_rpn(batch_size_per_image=100, anchor_boundary_thresh=0)
    small = d2.Instances((20, 40), gt_boxes=d2.Boxes(torch.zeros(0, 4)))
    labels, _ = rpn.label_and_sample_anchors(rpn.anchor_generator(list(inputs()[1].values())), [small])
    assert labels[0].tolist() == [0] * 8 + [-1] * 8 + [0, 0, -1, -1]


def test_training_without_ground_truth_is_an_error():
    with pytest.raises((AssertionError, ValueError)):
        make_rpn()(*inputs())


def test_predictions_go_to_the_right_anchors():
    """Two anchors at each cell: the code of the second one moves it one width to the right."""
    generator = d2.DefaultAnchorGenerator(sizes=[[4, 8]], aspect_ratios=[1.0], strides=[8], offset=0.5)
    head = d2.StandardRPNHead(in_channels=2, num_anchors=2)
    rpn = make_rpn(in_features=["p3"], head=head, anchor_generator=generator).eval()
    zero(rpn)
    with torch.no_grad():
        head.objectness_logits.bias.copy_(torch.tensor([-1.0, 1.0]))
        head.anchor_deltas.bias[4] = 1.0
    images, features = inputs()
    (proposals,), _ = rpn(images, {"p3": features["p3"][:, :, :1, :1]})
    assert proposals.proposal_boxes.tensor.tolist() == [[8, 0, 16, 8], [2, 2, 6, 6]]
    assert proposals.objectness_logits.tolist() == [1, -1]


def test_settings_of_training_and_inference():
    rpn = make_rpn()
    assert (rpn.pre_nms_topk, rpn.post_nms_topk) == ({True: 100, False: 10}, {True: 50, False: 4})
    assert (rpn.nms_thresh, rpn.min_box_size, rpn.loss_weight) == (0.7, 0.0, {"loss_rpn_cls": 1.0, "loss_rpn_loc": 1.0})


def test_head_weights():
    head = d2.StandardRPNHead(in_channels=4, num_anchors=3)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "conv.weight": (4, 4, 3, 3),
        "conv.bias": (4,),
        "objectness_logits.weight": (3, 4, 1, 1),
        "objectness_logits.bias": (3,),
        "anchor_deltas.weight": (12, 4, 1, 1),
        "anchor_deltas.bias": (12,),
    }
    deep = d2.StandardRPNHead(in_channels=4, num_anchors=3, conv_dims=[6, -1])
    assert [name for name in deep.state_dict() if name.endswith("weight")] == [
        "conv.conv0.weight",
        "conv.conv1.weight",
        "objectness_logits.weight",
        "anchor_deltas.weight",
    ]
    assert deep.anchor_deltas.weight.shape == (12, 6, 1, 1)
    logits, deltas = deep([torch.zeros(2, 4, 5, 6)])
    assert (logits[0].shape, deltas[0].shape) == ((2, 3, 5, 6), (2, 12, 5, 6))


def test_head_weights_are_drawn_in_order():
    torch.manual_seed(3)
    head = d2.StandardRPNHead(in_channels=4, num_anchors=3)
    torch.manual_seed(3)
    layers = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 12, 1)
    for layer, own in zip(layers, (head.conv, head.objectness_logits, head.anchor_deltas)):
        nn.init.normal_(layer.weight, std=0.01)
        assert torch.equal(layer.weight, own.weight)
        assert torch.count_nonzero(own.bias) == 0
