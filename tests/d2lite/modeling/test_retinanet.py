"""RetinaNet: recorded losses and detections of a tiny model, and its parts worked out by hand."""

from __future__ import annotations

import logging
import math
from itertools import pairwise

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2

lite_only = pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="what d2lite adds")
CLASSES = 3


class TinyBackbone(d2.Backbone):
    """Five convolutions with stride 2; the maps of strides 8, 16 and 32 are the output."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in pairwise([3, 4, 4, 6, 8, 8]))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self._out_features = ["res3", "res4", "res5"]
        self._out_feature_channels = {"res3": 6, "res4": 8, "res5": 8}
        self._out_feature_strides = {"res3": 8, "res4": 16, "res5": 32}

    def forward(self, x):
        outputs = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            outputs.append(x)
        return dict(zip(self._out_features, outputs[-3:]))


def make_head(**changes) -> d2.RetinaNetHead:
    arguments = {
        "input_shape": [d2.ShapeSpec(channels=8)] * 5,
        "num_classes": CLASSES,
        "num_anchors": 9,
        "conv_dims": [8, 6],
        **changes,
    }
    return d2.RetinaNetHead(**arguments)


def make_model(**changes) -> d2.RetinaNet:
    torch.manual_seed(0)
    top = d2.LastLevelP6P7(in_channels=8, out_channels=8)
    arguments = {
        "backbone": d2.FPN(TinyBackbone(), ["res3", "res4", "res5"], 8, top_block=top),
        "head": make_head(),
        "head_in_features": ["p3", "p4", "p5", "p6", "p7"],
        "anchor_generator": d2.DefaultAnchorGenerator(
            sizes=[[s * 2 ** (i / 3) for i in range(3)] for s in (16, 32, 64, 128, 256)],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
        "box2box_transform": d2.Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
        "anchor_matcher": d2.Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        "num_classes": CLASSES,
        "max_detections_per_image": 6,
        "pixel_mean": [100.0, 110.0, 120.0],
        "pixel_std": [50.0, 55.0, 60.0],
        **changes,
    }
    return d2.RetinaNet(**arguments)


def picture(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(5 * x) % 256, (3 * y) % 256, (x * y) % 256]).to(torch.uint8)


def truth(size: tuple[int, int], boxes: list[list[float]], classes: list[int]) -> d2.Instances:
    tensor = torch.tensor(boxes).reshape(-1, 4)
    return d2.Instances(size, gt_boxes=d2.Boxes(tensor), gt_classes=torch.tensor(classes, dtype=torch.int64))


def batch(second_is_empty: bool = True) -> list[dict]:
    first = truth((64, 96), [[4.0, 4.0, 36.0, 40.0], [50.0, 20.0, 90.0, 44.0]], [2, 0])
    second = truth((50, 60), [], []) if second_is_empty else truth((50, 60), [[10.0, 10.0, 26.0, 30.0]], [1])
    return [
        {"image": picture(64, 96), "instances": first, "height": 128, "width": 192},
        {"image": picture(50, 60), "instances": second},
    ]


# ---------------------------------------------------------------- the whole model

# Recorded with Detectron2 (02b5c4e).
LOSSES = {
    "smooth_l1": {
        "loss_cls": [0.2885869, 0.3729614, 0.2807018],
        "loss_box_reg": [0.1548146, 0.2237143, 0.1660603],
    },
    "giou": {
        "loss_cls": [0.2885869, 0.3729712, 0.2807268],
        "loss_box_reg": [0.127911, 0.1890447, 0.1406473],
    },
}
NUM_POSITIVE = [21, 29, 21]  # anchors of both images, in each step
BOXES = [[120.008, 57.07, 170.899, 99.105], [141.822, 53.765, 190.766, 101.015], [90.035, 0.0, 146.03, 29.578]]
SCORES = [0.32361, 0.24342, 0.20872, 0.18494, 0.17243, 0.14526]
FOUND = [2, 2, 2, 1, 2, 0]
FIRST_WEIGHTS = {
    "head.cls_subnet.0.weight": -0.00048201,
    "head.cls_subnet.2.weight": 0.00776442,
    "head.bbox_subnet.0.weight": -0.01549139,
    "head.bbox_subnet.2.weight": -0.01301056,
    "head.cls_score.weight": 0.0090509,
    "head.bbox_pred.weight": -0.00796023,
}


def sharpen(model: d2.RetinaNet) -> None:
    """Make the predictions of an untrained model differ enough not to depend on rounding."""
    with torch.no_grad():
        for name in ("cls_subnet", "bbox_subnet"):
            for conv in getattr(model.head, name)[::2]:
                conv.weight.mul_(10)
        model.head.cls_score.weight.mul_(60)
        model.head.bbox_pred.weight.mul_(10)


def train(model: d2.RetinaNet, steps: int = 3) -> tuple[list[dict[str, float]], d2.EventStorage]:
    sharpen(model)
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


@pytest.mark.parametrize("box_loss", LOSSES)
def test_recorded_losses(box_loss):
    losses, storage = train(make_model(box_reg_loss_type=box_loss, smooth_l1_beta=0.1))
    expected = LOSSES[box_loss]
    assert [list(step) for step in losses] == [list(expected)] * 3
    for name, values in expected.items():
        assert [step[name] for step in losses] == pytest.approx(values, rel=1e-4), name
    assert {name: value for name, (value, _) in storage.latest().items()} == {"num_pos_anchors": NUM_POSITIVE[2] / 2}


def test_normalizer_is_a_moving_average_from_100():
    model = make_model()
    train(model)
    average = 100.0
    for positive in NUM_POSITIVE:
        average = 0.9 * average + 0.1 * positive
    assert model.loss_normalizer == pytest.approx(average)
    assert "loss_normalizer" not in model.state_dict()


def test_recorded_detections():
    model = make_model()
    train(model)
    with torch.no_grad():
        first, second = (output["instances"] for output in model.eval()(batch()))
    assert (first.image_size, second.image_size) == ((128, 192), (50, 60))
    torch.testing.assert_close(first.pred_boxes.tensor[: len(BOXES)], torch.tensor(BOXES), atol=1e-2, rtol=0)
    torch.testing.assert_close(first.scores, torch.tensor(SCORES), atol=1e-4, rtol=0)
    assert first.pred_classes.tolist() == FOUND
    assert [len(first), len(second)] == [6, 4]


def test_the_same_seed_starts_with_the_same_weights():
    state = make_model(head=(torch.manual_seed(5), make_head())[1]).state_dict()
    for key, value in FIRST_WEIGHTS.items():
        assert state[key].flatten()[0].item() == pytest.approx(value, abs=1e-7), key


def test_state_dict():
    shapes = {key: tuple(value.shape) for key, value in make_model().state_dict().items() if key.startswith("head.")}
    expected = {}
    for tower in ("cls_subnet", "bbox_subnet"):
        expected |= {f"head.{tower}.0.weight": (8, 8, 3, 3), f"head.{tower}.0.bias": (8,)}
        expected |= {f"head.{tower}.2.weight": (6, 8, 3, 3), f"head.{tower}.2.bias": (6,)}
    for name, numbers in (("cls_score", 27), ("bbox_pred", 36)):
        expected |= {f"head.{name}.weight": (numbers, 6, 3, 3), f"head.{name}.bias": (numbers,)}
    assert shapes == expected
    prefixes = {".".join(key.split(".")[:2]) for key in make_model().state_dict()}
    assert {p for p in prefixes if p.startswith("backbone.")} == {
        "backbone.bottom_up",
        "backbone.top_block",
        *(f"backbone.fpn_{kind}{stage}" for kind in ("lateral", "output") for stage in (3, 4, 5)),
    }


def test_maps_of_the_head_default_to_all_by_resolution():
    assert list(make_model(head_in_features=None).head_in_features) == ["p3", "p4", "p5", "p6", "p7"]


# ---------------------------------------------------------------- losses


def test_losses_by_hand():
    """Two anchors and an ignored one, two classes: the focal loss of the paper, and L1 on the box codes."""
    model = make_model(num_classes=2, head=make_head(num_classes=2), focal_loss_alpha=0.3, focal_loss_gamma=1.5)
    anchors = [d2.Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20]])), d2.Boxes(torch.tensor([[5.0, 5, 9, 9]]))]
    logits = [torch.tensor([[[0.5, -1.0], [2.0, 0.0]]]), torch.tensor([[[3.0, 3.0]]])]
    deltas = [torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)]
    labels = [torch.tensor([1, 2, -1])]  # class 1, background, ignored
    boxes = [torch.tensor([[1.0, 0, 11, 20], [0, 0, 1, 1], [0, 0, 1, 1]])]
    with d2.EventStorage():
        losses = model.losses(anchors, logits, labels, deltas, boxes)

    def focal(logit: float, target: int) -> float:
        p = 1 / (1 + math.exp(-logit))
        right, weight = (p, 0.3) if target else (1 - p, 0.7)
        return -weight * (1 - right) ** 1.5 * math.log(right)

    total = focal(0.5, 0) + focal(-1.0, 1) + focal(2.0, 0) + focal(0.0, 0)
    normalizer = 0.9 * 100 + 0.1 * 1
    assert losses["loss_cls"].item() == pytest.approx(total / normalizer, rel=1e-5)
    # the centre moves by (0.1, 0.5), the height doubles
    assert losses["loss_box_reg"].item() == pytest.approx((0.1 + 0.5 + math.log(2)) / normalizer, rel=1e-5)


def test_anchors_are_labelled():
    model = make_model(anchor_matcher=d2.Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=False))
    anchors = [
        d2.Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])),
        d2.Boxes(torch.tensor([[0.0, 0, 10, 4.5], [0, 0, 10, 1], [50, 50, 60, 60]])),
    ]
    objects = truth((64, 96), [[50.0, 50, 60, 60], [0, 0, 10, 10]], [0, 2])
    (labels, none), (boxes, nowhere) = model.label_anchors(anchors, [objects, truth((64, 96), [], [])])
    assert labels.tolist() == [2, 2, -1, 3, 0]
    assert boxes[[0, 1, 4]].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
    assert none.tolist() == [3] * 5
    assert nowhere.shape == (5, 4)
    assert objects.gt_classes.tolist() == [0, 2]  # left as they were


def test_nothing_to_learn_in_the_whole_batch():
    inputs = batch()
    inputs[0]["instances"] = truth((64, 96), [], [])
    model = make_model()
    with d2.EventStorage() as storage:
        losses = model(inputs)
        assert storage.latest()["num_pos_anchors"][0] == 0
    sum(losses.values()).backward()
    assert losses["loss_box_reg"].item() == 0
    assert model.loss_normalizer == pytest.approx(0.9 * 100 + 0.1)
    assert all(parameter.grad is not None for parameter in model.parameters())


# ---------------------------------------------------------------- detections


def test_detections_by_hand():
    """The best of each level over the threshold, then NMS within classes, then the best of all."""
    model = make_model(test_score_thresh=0.2, test_topk_candidates=2, test_nms_thresh=0.5, max_detections_per_image=3)
    anchors = [
        d2.Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])),
        d2.Boxes(torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]])),
    ]
    scores = [
        torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.0, 0.0], [0.7, 0.0, 0.0]]),  # the third is one too many
        torch.tensor([[0.0, 0.6, 0.0], [0.0, 0.2, 0.3]]),  # 0.2 is not above the threshold
    ]
    deltas = [torch.zeros(3, 4), torch.tensor([[0.0, 0, 0, 0], [0.5, 0, math.log(2), 0]])]
    found = model.inference_single_image(anchors, scores, deltas, (64, 96))
    assert found.image_size == (64, 96)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found.pred_classes.tolist() == [0, 1, 2]  # another class is not suppressed
    expected = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [40, 40, 60, 50]])
    torch.testing.assert_close(found.pred_boxes.tensor, expected)
    model.max_detections_per_image = 1
    assert model.inference_single_image(anchors, scores, deltas, (64, 96)).scores.tolist() == pytest.approx([0.9])


def test_no_detection_at_all():
    model = make_model(test_score_thresh=0.999)
    with torch.no_grad():
        outputs = model.eval()(batch())
    assert [len(output["instances"]) for output in outputs] == [0, 0]
    assert outputs[0]["instances"].pred_boxes.tensor.shape == (0, 4)


def test_predictions_come_in_the_order_of_anchors():
    permute = d2_module("modeling.meta_arch.dense_detector").permute_to_N_HWA_K
    n, a, k, h, w = 2, 3, 4, 2, 5
    one_by_one = torch.arange(n * a * k * h * w).reshape(n, a * k, h, w)
    ordered = permute(one_by_one, k)
    assert ordered.shape == (n, h * w * a, k)
    for row, column, anchor in ((0, 0, 0), (0, 1, 2), (1, 4, 1)):
        expected = one_by_one[1, anchor * k : (anchor + 1) * k, row, column]
        assert torch.equal(ordered[1, (row * w + column) * a + anchor], expected)


# ---------------------------------------------------------------- the head


def test_start_of_the_head():
    head = make_head(prior_prob=0.05, conv_dims=[64, 64])
    assert torch.sigmoid(head.cls_score.bias).tolist() == pytest.approx([0.05] * 27)
    assert torch.count_nonzero(head.bbox_pred.bias) == 0
    for conv in (head.cls_subnet[2], head.bbox_subnet[2], head.cls_score, head.bbox_pred):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert abs(conv.weight.mean().item()) < 5e-4


def test_towers_are_shared_by_the_maps():
    head = make_head(input_shape=[d2.ShapeSpec(channels=8)] * 2)
    feature = torch.rand(1, 8, 4, 5)
    logits, codes = head([feature, feature])
    assert [x.shape for x in logits] == [(1, 27, 4, 5)] * 2
    assert [x.shape for x in codes] == [(1, 36, 4, 5)] * 2
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(
    ("norm", "kind"), [("GN", "GroupNorm"), ("LN", "LayerNorm"), ("FrozenBN", "FrozenBatchNorm2d")]
)
def test_norms(norm, kind):
    head = make_head(norm=norm, conv_dims=[32, 32])
    assert [type(layer).__name__ for layer in head.cls_subnet] == ["Conv2d", kind, "ReLU"] * 2
    assert len(head.bbox_subnet) == 6


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norm_keeps_statistics_of_each_map(norm):
    head = make_head(norm=norm, input_shape=[d2.ShapeSpec(channels=8)] * 2, conv_dims=[8])
    keys = [key.removeprefix("cls_subnet.1.") for key in head.state_dict() if key.startswith("cls_subnet.1.")]
    statistics = [f"{i}.{name}" for i in (0, 1) for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert sorted(keys) == sorted(["weight", "bias", *statistics])
    norms = head.cls_subnet[1]
    assert type(norms[0]).__name__ == {"BN": "BatchNorm2d", "SyncBN": "SyncBatchNorm"}[norm]
    if norm == "SyncBN":  # works on CUDA only
        return
    small, large = torch.rand(2, 8, 4, 5), 100 * torch.rand(2, 8, 2, 3)
    head([small, large])
    head([small, large])
    means = [norms[i].running_mean for i in (0, 1)]
    assert [int(norms[i].num_batches_tracked) for i in (0, 1)] == [2, 2]
    hidden = [head.cls_subnet[0](x).mean((0, 2, 3)) for x in (small, large)]
    for mean, expected in zip(means, hidden):
        torch.testing.assert_close(mean, expected * (1 - 0.9**2))


def test_cycling_batch_norm():
    norm = d2_module("layers").CycleBatchNormList(2, num_features=3)
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(-1.0)
    x = torch.rand(4, 3, 2, 2)
    normalized = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    for _ in range(2):
        torch.testing.assert_close(norm(x), 2 * normalized - 1)
    torch.testing.assert_close(norm[0].running_mean, norm[1].running_mean)
    assert torch.count_nonzero(norm[0].running_mean) == 3
    plain = d2_module("layers").CycleBatchNormList(length=3, bn_class=nn.BatchNorm2d, num_features=3, affine=False)
    assert [name for name, _ in plain.named_parameters()] == []
    torch.testing.assert_close(plain(x), normalized)


# ---------------------------------------------------------------- bad input, pictures


def test_bad_arguments():
    errors = (AssertionError, ValueError, KeyError, IndexError)
    with pytest.raises(errors), d2.EventStorage():
        make_model()([{"image": picture(64, 64)}])
    with pytest.raises(errors):
        make_head()([torch.rand(1, 8, 4, 4)])
    with pytest.raises(errors):
        make_head(input_shape=[])
    with pytest.raises(errors):
        make_head(conv_dims=[])
    with pytest.raises((AssertionError, ValueError)), d2.EventStorage():
        make_model(box_reg_loss_type="l3")(batch())


@lite_only
def test_messages(caplog):
    with pytest.raises(ValueError, match="differ in the number of channels"):
        make_model(pixel_std=[1.0])
    with pytest.raises(KeyError, match=r"inputs \[1\] have no 'instances'"), d2.EventStorage():
        make_model()([batch()[0], {"image": picture(64, 64)}])
    with pytest.raises(ValueError, match="made for 5 feature maps and got 1"):
        make_head()([torch.rand(1, 8, 4, 4)])
    with pytest.raises(ValueError, match=r"prior_prob must lie in \(0, 1\), got 0"):
        make_head(prior_prob=0)
    with caplog.at_level(logging.WARNING):
        make_head(norm="naiveSyncBN", conv_dims=[8])
    assert "shares its statistics" in caplog.text
    abstract = d2_module("modeling.meta_arch").DenseDetector(
        make_model().backbone, make_head(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    with pytest.raises(NotImplementedError, match="forward_inference"):
        abstract.eval()(batch())


@lite_only
def test_pictures_of_the_training():
    model = make_model(vis_period=2, test_score_thresh=0.0)
    with d2.EventStorage() as storage:
        for _ in range(3):
            model(batch())
            storage.step()
    names = [name for name, _, _ in storage._vis_data]
    assert names == ["Top: GT bounding boxes; Bottom: 20 Highest Scoring Results"] * 2
    assert storage._vis_data[0][1].shape == (3, 128, 96)
