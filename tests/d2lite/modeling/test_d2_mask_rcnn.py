"""Sampling of proposals, and Mask R-CNN as a whole: recorded losses and detections of a tiny model."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2


class TinyBackbone(d2.Backbone):
    """Five convolutions with stride 2, of which the last two are the output."""

    def __init__(self):
        super().__init__()
        channels = [3, 4, 4, 6, 8, 8]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in pairwise(channels))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self._out_features = ["res4", "res5"]
        self._out_feature_channels = {"res4": 8, "res5": 8}
        self._out_feature_strides = {"res4": 16, "res5": 32}

    def forward(self, x):
        outputs = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            outputs.append(x)
        return dict(zip(self._out_features, outputs[-2:]))


def make_heads(**changes) -> d2.StandardROIHeads:
    pooler = {"scales": (1 / 16, 1 / 32), "sampling_ratio": 0, "pooler_type": "ROIAlignV2"}
    arguments = {
        "num_classes": 3,
        "batch_size_per_image": 16,
        "positive_fraction": 0.25,
        "proposal_matcher": d2.Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        "box_in_features": ["p4", "p5"],
        "box_pooler": d2.ROIPooler(output_size=3, **pooler),
        "box_head": d2.FastRCNNConvFCHead(d2.ShapeSpec(channels=8, height=3, width=3), conv_dims=[], fc_dims=[16]),
        "box_predictor": d2.FastRCNNOutputLayers(
            d2.ShapeSpec(channels=16),
            box2box_transform=d2.Box2BoxTransform(weights=(10, 10, 5, 5)),
            num_classes=3,
            test_topk_per_image=5,
        ),
        "mask_in_features": ["p4", "p5"],
        "mask_pooler": d2.ROIPooler(output_size=4, **pooler),
        "mask_head": d2.MaskRCNNConvUpsampleHead(
            d2.ShapeSpec(channels=8, width=4, height=4), num_classes=3, conv_dims=[8, 8]
        ),
        **changes,
    }
    return d2.StandardROIHeads(**arguments)


def make_model(**changes) -> d2.GeneralizedRCNN:
    torch.manual_seed(0)
    arguments = {
        "backbone": d2.FPN(TinyBackbone(), ["res4", "res5"], 8, top_block=d2.LastLevelMaxPool()),
        "proposal_generator": d2.RPN(
            in_features=["p4", "p5", "p6"],
            head=d2.StandardRPNHead(in_channels=8, num_anchors=3),
            anchor_generator=d2.DefaultAnchorGenerator(
                sizes=[[16], [32], [64]], aspect_ratios=[0.5, 1.0, 2.0], strides=[16, 32, 64], offset=0.0
            ),
            anchor_matcher=d2.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=d2.Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
            batch_size_per_image=32,
            positive_fraction=0.5,
            pre_nms_topk=(50, 30),
            post_nms_topk=(40, 20),
        ),
        "roi_heads": make_heads(),
        "pixel_mean": [100.0, 110.0, 120.0],
        "pixel_std": [50.0, 55.0, 60.0],
        "input_format": "BGR",
        **changes,
    }
    return d2.GeneralizedRCNN(**arguments)


def gradient_image(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(5 * x) % 256, (3 * y) % 256, (x * y) % 256]).to(torch.uint8)


def truth(size: tuple[int, int], boxes: list[list[float]], classes: list[int]) -> d2.Instances:
    tensor = torch.tensor(boxes).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, tensor.int().tolist()):
        mask[y0 : (y0 + y1) // 2, x0:x1] = True
    classes_tensor = torch.tensor(classes, dtype=torch.int64)
    return d2.Instances(size, gt_boxes=d2.Boxes(tensor), gt_classes=classes_tensor, gt_masks=d2.BitMasks(masks))


def batch(second_is_empty: bool = True) -> list[dict]:
    first = truth((64, 96), [[4.0, 4.0, 36.0, 40.0], [50.0, 20.0, 90.0, 44.0]], [2, 0])
    second = truth((50, 60), [], []) if second_is_empty else truth((50, 60), [[10.0, 10.0, 26.0, 30.0]], [1])
    return [
        {"image": gradient_image(64, 96), "instances": first, "height": 128, "width": 192},
        {"image": gradient_image(50, 60), "instances": second},
    ]


# ---------------------------------------------------------------- sampling


def proposals(*boxes: list[float]) -> d2.Instances:
    tensor = torch.tensor(boxes).reshape(-1, 4)
    return d2.Instances((64, 96), proposal_boxes=d2.Boxes(tensor), objectness_logits=torch.zeros(len(boxes)))


def test_proposals_get_their_targets():
    heads = make_heads()
    given = proposals([4.0, 4.0, 36.0, 39.0], [0.0, 0.0, 5.0, 5.0], [50.0, 20.0, 90.0, 43.0])
    objects = truth((64, 96), [[4.0, 4.0, 36.0, 40.0], [50.0, 20.0, 90.0, 44.0]], [2, 0])
    with d2.EventStorage() as storage:
        with_gt, without_gt = heads.label_and_sample_proposals([given, given], [objects, truth((64, 96), [], [])])
    rows = zip(
        with_gt.proposal_boxes.tensor.tolist(), with_gt.gt_classes.tolist(), with_gt.gt_boxes.tensor[:, 3].tolist()
    )
    assert sorted((box[3], category, bottom) for box, category, bottom in rows if category < 3) == [
        (39, 2, 40),
        (40, 2, 40),
        (43, 0, 44),
        (44, 0, 44),
    ]
    assert with_gt.gt_classes.tolist()[-1] == 3
    assert len(with_gt.gt_masks) == 5
    assert without_gt.gt_classes.tolist() == [3, 3, 3]
    assert set(without_gt.get_fields()) == {"proposal_boxes", "objectness_logits", "gt_classes"}
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"roi_head/num_fg_samples": 2.0, "roi_head/num_bg_samples": 2.0}


def test_sample_size_and_appended_ground_truth():
    given = proposals(
        *[[4.0, 4.0, 36.0, 39.0 - i / 8] for i in range(10)], *[[50.0, 0.0, 60.0, 1.0 + i] for i in range(9)]
    )
    objects = truth((64, 96), [[4.0, 4.0, 36.0, 40.0]], [2])
    with d2.EventStorage():
        (sampled,) = make_heads(batch_size_per_image=8).label_and_sample_proposals([given], [objects])
        assert sampled.gt_classes.tolist() == [2] * 2 + [3] * 6
        all_of_it = {"batch_size_per_image": 100, "positive_fraction": 1.0}
        (sampled,) = make_heads(proposal_append_gt=False, **all_of_it).label_and_sample_proposals([given], [objects])
        assert len(sampled) == 19
        (sampled,) = make_heads(**all_of_it).label_and_sample_proposals([given], [objects])
        assert len(sampled) == 20


def test_ignored_proposals_are_not_sampled():
    heads = make_heads(proposal_matcher=d2.Matcher([0.3, 0.7], [0, -1, 1]), proposal_append_gt=False)
    given = proposals([0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 1.0])
    with d2.EventStorage():
        (sampled,) = heads.label_and_sample_proposals([given], [truth((64, 96), [[0.0, 0.0, 10.0, 10.0]], [1])])
    assert sampled.gt_classes.tolist() == [1, 3]


def test_select_foreground():
    instances = proposals(*[[0.0, 0.0, 1.0, 1.0 + i] for i in range(4)])
    instances.gt_classes = torch.tensor([3, 0, -1, 2])
    (selected,), (mask,) = d2_module("modeling.roi_heads").select_foreground_proposals([instances], bg_label=3)
    assert selected.gt_classes.tolist() == [0, 2]
    assert mask.tolist() == [False, True, False, True]


# ---------------------------------------------------------------- the whole model

# Recorded with Detectron2 (02b5c4e).
LOSSES = {
    "loss_cls": [1.351968, 1.261435, 1.19168],
    "loss_box_reg": [0.00227, 0.003011, 0.071638],
    "loss_mask": [0.709074, 0.706142, 0.723184],
    "loss_rpn_cls": [0.69399, 0.691545, 0.690371],
    "loss_rpn_loc": [0.028633, 0.038022, 0.028556],
}
EVENTS = {
    "rpn/num_pos_anchors": 1.0,
    "rpn/num_neg_anchors": 31.0,
    "roi_head/num_fg_samples": 1.5,
    "roi_head/num_bg_samples": 14.5,
    "fast_rcnn/cls_accuracy": 0.65625,
    "fast_rcnn/fg_cls_accuracy": 0.6666666666666666,
    "fast_rcnn/false_negative": 0.3333333333333333,
    "mask_rcnn/accuracy": 0.47395833333333337,
    "mask_rcnn/false_positive": 0.6923076923076923,
    "mask_rcnn/false_negative": 0.32954545454545453,
}
BOXES = [[148.714, 9.371, 171.475, 54.445], [0.0, 0.0, 22.973, 11.401]]
SCORES = [0.36247, 0.35944, 0.35753, 0.35326, 0.34702]
CLASSES = [2, 2, 2, 2, 2]


def sharpen(model: d2.GeneralizedRCNN) -> None:
    """Make the predictions of an untrained model differ enough not to depend on rounding."""
    with torch.no_grad():
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(30)
        model.proposal_generator.rpn_head.anchor_deltas.weight.mul_(10)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(30)
        model.roi_heads.mask_head.predictor.weight.mul_(1000)


def train(model: d2.GeneralizedRCNN, steps: int = 3) -> tuple[list[dict[str, float]], d2.EventStorage]:
    sharpen(model)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    recorded = []
    with d2.EventStorage() as storage:
        for step in range(steps):
            losses = model(batch(second_is_empty=step != 1))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            recorded.append({name: loss.item() for name, loss in losses.items()})
    return recorded, storage


def test_recorded_losses():
    losses, storage = train(make_model())
    assert [list(step) for step in losses] == [list(LOSSES)] * 3
    for name, expected in LOSSES.items():
        assert [step[name] for step in losses] == pytest.approx(expected, abs=2e-5), name
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert set(latest) == set(EVENTS)
    for name, expected in EVENTS.items():
        assert latest[name] == pytest.approx(expected, abs=0.01), name


def test_recorded_detections():
    model = make_model()
    train(model)
    with torch.no_grad():
        first, second = (output["instances"] for output in model.eval()(batch()))
    assert (first.image_size, second.image_size) == ((128, 192), (50, 60))
    torch.testing.assert_close(first.pred_boxes.tensor[:2], torch.tensor(BOXES), atol=1e-2, rtol=0)
    torch.testing.assert_close(first.scores, torch.tensor(SCORES), atol=1e-4, rtol=0)
    assert first.pred_classes.tolist() == CLASSES
    assert first.pred_masks.shape == (5, 128, 192)
    assert [len(first), len(second)] == [5, 5]


def test_state_dict_has_no_constants():
    keys = list(make_model().state_dict())
    assert sorted({key.split(".")[0] for key in keys}) == ["backbone", "proposal_generator", "roi_heads"]
    assert len(keys) == 36
    for key in (
        "backbone.fpn_lateral4.weight",
        "backbone.bottom_up.convs.0.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.mask_head.mask_fcn1.weight",
    ):
        assert key in keys


def test_preprocessing_normalizes_and_pads():
    images = make_model().preprocess_image(batch())
    assert images.image_sizes == [(64, 96), (50, 60)]
    assert images.tensor.shape == (2, 3, 64, 96)
    assert images.tensor[0, :, 0, 0].tolist() == [-2.0, -2.0, -2.0]
    assert torch.count_nonzero(images.tensor[1, :, 50:]) == 0


def test_nothing_to_learn_in_the_whole_batch():
    inputs = batch()
    inputs[0]["instances"] = truth((64, 96), [], [])
    model = make_model()
    with d2.EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert (losses["loss_mask"].item(), losses["loss_box_reg"].item(), losses["loss_rpn_loc"].item()) == (0, 0, 0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_diverged_weights_stop_the_training():
    model = make_model()
    nn.init.constant_(model.proposal_generator.rpn_head.anchor_deltas.bias, float("nan"))
    with d2.EventStorage(), pytest.raises(FloatingPointError, match="diverged"):
        model(batch())
    with torch.no_grad():
        outputs = model.eval()(batch())
    assert [len(output["instances"]) for output in outputs] == [0, 0]
    assert outputs[0]["instances"].pred_masks.shape == (0, 128, 192)


def test_masks_of_given_boxes():
    model = make_model().eval()
    with torch.no_grad():
        raw = model.inference(batch(), do_postprocess=False)
        given = [d2.Instances(r.image_size, pred_boxes=r.pred_boxes, pred_classes=r.pred_classes) for r in raw]
        again = model.inference(batch(), detected_instances=given, do_postprocess=False)
    for before, after in zip(raw, again):
        assert before.pred_masks.shape == (5, 1, 8, 8)
        assert torch.equal(before.pred_masks, after.pred_masks)


def test_proposals_from_the_inputs():
    model = make_model(proposal_generator=None)
    inputs = batch()
    with d2.EventStorage(), pytest.raises((AssertionError, KeyError)):
        model(inputs)
    for x in inputs:
        x["proposals"] = proposals([5.0, 5.0, 30.0, 40.0])
    with d2.EventStorage():
        assert list(model(inputs)) == ["loss_cls", "loss_box_reg", "loss_mask"]
    with torch.no_grad():
        assert len(model.eval()(inputs)) == 2


def test_without_masks_and_on_predicted_boxes():
    no_masks = {"mask_in_features": None, "mask_pooler": None, "mask_head": None}
    model = make_model(roi_heads=make_heads(**no_masks))
    with d2.EventStorage():
        assert "loss_mask" not in model(batch())
    assert not model.eval()(batch())[0]["instances"].has("pred_masks")
    heads = make_heads(train_on_pred_boxes=True)
    nn.init.constant_(heads.box_predictor.bbox_pred.bias, 10.0)  # one width to the right and so on
    nn.init.zeros_(heads.box_predictor.bbox_pred.weight)
    given = proposals([0.0, 0.0, 10.0, 10.0])
    given.gt_classes, given.gt_boxes = torch.tensor([1]), d2.Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))
    features = {"p4": torch.zeros(1, 8, 4, 6), "p5": torch.zeros(1, 8, 2, 3)}
    with d2.EventStorage():
        heads._forward_box(features, [given])
    assert given.proposal_boxes.get_centers().tolist() == [[15, 15]]


def test_bad_arguments():
    with pytest.raises((AssertionError, ValueError)):
        make_model(pixel_std=[1.0])
    with pytest.raises((AssertionError, ValueError)):
        make_model(vis_period=10, input_format=None)
    with pytest.raises((AssertionError, ValueError)), d2.EventStorage():
        make_model()([{"image": gradient_image(64, 64)}])
    with pytest.raises((AssertionError, RuntimeError)):
        make_model().inference(batch())
