"""The cascade's heads: what each stage is trained on, how boxes move on, what is averaged, and empty input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elsa_det.d2 import (
    BitMasks,
    Box2BoxTransform,
    Boxes,
    EventStorage,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    Instances,
    MaskRCNNConvUpsampleHead,
    Matcher,
    ROIPooler,
    ShapeSpec,
    get_event_storage,
    select_foreground_proposals,
)
from elsa_det.errors import UserError
from elsa_det.modeling import CascadeMaskRCNNHeads

K, CHANNELS, SIZE = 3, 4, (64, 96)
BOXES = torch.tensor([[8.0, 8, 40, 40], [50, 10, 90, 50]])
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


def make_heads(*, masks: bool = True, agnostic: bool = False, **changes: Any) -> CascadeMaskRCNNHeads:
    torch.manual_seed(1)

    def pooler(side: int) -> ROIPooler:
        return ROIPooler(output_size=side, scales=(1 / 4, 1 / 8), sampling_ratio=0, pooler_type="ROIAlignV2")

    def predictor(weights: tuple[float, ...]) -> FastRCNNOutputLayers:
        return FastRCNNOutputLayers(
            ShapeSpec(channels=8),
            box2box_transform=Box2BoxTransform(weights=weights),
            num_classes=K,
            cls_agnostic_bbox_reg=agnostic,
            box_reg_loss_type="giou",
            loss_weight={"loss_box_reg": 10.0},
            test_score_thresh=0.05,
        )

    shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
    arguments: dict[str, Any] = dict(
        num_classes=K,
        batch_size_per_image=16,
        positive_fraction=0.5,
        proposal_matchers=[Matcher([iou], [0, 1]) for iou in (0.5, 0.6, 0.7)],
        stage_loss_weights=[1.0, 0.5, 0.25],
        box_in_features=["p2", "p3"],
        box_pooler=pooler(7),
        box_head=[FastRCNNConvFCHead(shape, conv_dims=[4], fc_dims=[8], conv_norm="BN") for _ in WEIGHTS],
        box_predictor=[predictor(weights) for weights in WEIGHTS],
    )
    if masks:
        arguments.update(
            mask_in_features=["p2", "p3"],
            mask_pooler=pooler(14),
            mask_head=[
                MaskRCNNConvUpsampleHead(ShapeSpec(channels=CHANNELS), num_classes=K, conv_dims=[4, 4]) for _ in WEIGHTS
            ],
        )
    return CascadeMaskRCNNHeads(**{**arguments, **changes})


def make_features(images: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = {"p2": (16, 24), "p3": (8, 12)}
    return {
        name: torch.randn(images, CHANNELS, *size, generator=generator, requires_grad=True)
        for name, size in sizes.items()
    }


def make_target(boxes: Tensor = BOXES) -> Instances:
    target = Instances(SIZE)
    target.gt_boxes = Boxes(boxes.clone())
    target.gt_classes = torch.arange(len(boxes)) % K
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
        mask[y0:y1, x0:x1] = True
    target.gt_masks = BitMasks(masks)
    return target


def make_regions(boxes: Tensor, **fields: Any) -> Instances:
    return Instances(SIZE, proposal_boxes=Boxes(boxes.clone().reshape(-1, 4)), **fields)


def fix_outputs(layer: nn.Linear | nn.Conv2d, values: Any) -> None:
    """Whatever comes in, ``values`` come out."""
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.as_tensor(values, dtype=torch.float32))


LOSSES = {f"loss_{part}_stage{stage}" for part in ("cls", "box_reg", "mask") for stage in range(3)}


def test_stages_sample_by_their_own_threshold_and_say_how_many():
    heads = make_heads().train()
    # beside an object of 32 × 32: shifted by 4, 7, 9 and 11 pixels, that is IoU 0.78, 0.64, 0.56 and 0.49
    shifted = BOXES[:1] + torch.tensor([[d, 0, d, 0] for d in (4.0, 7.0, 9.0, 11.0)])
    with EventStorage() as storage:
        for stage, foreground in enumerate((3, 2, 1)):
            (sampled,) = heads.label_and_sample_proposals([make_regions(shifted)], [make_target()], stage)
            proposed = sampled[~sampled.is_ground_truth]
            assert len(proposed) == 4
            assert sorted(proposed.gt_classes.tolist()) == [0] * foreground + [K] * (4 - foreground)
            known = sampled[sampled.is_ground_truth]
            order = known.gt_classes.argsort()
            assert torch.equal(known.proposal_boxes.tensor[order], BOXES)
            assert torch.equal(known.gt_boxes.tensor, known.proposal_boxes.tensor)
            logged = {name: value for name, (value, _) in storage.latest().items()}
            assert logged[f"stage{stage}/roi_head/num_fg_samples"] == foreground + 2
            assert logged[f"stage{stage}/roi_head/num_bg_samples"] == 4 - foreground
        heads.proposal_append_gt = False
        (sampled,) = heads.label_and_sample_proposals([make_regions(shifted)], [make_target()], 0)
        assert not sampled.is_ground_truth.any()
        assert len(sampled) == 4


def by_hand(box: Tensor, code: Tensor, weights: tuple[float, ...]) -> list[float]:
    """Decode a code as the R-CNN paper has it."""
    (x0, y0, x1, y1), (dx, dy, dw, dh) = box.tolist(), (code / torch.tensor(weights)).tolist()
    width, height = x1 - x0, y1 - y0
    x, y = x0 + width / 2 + dx * width, y0 + height / 2 + dy * height
    width, height = width * torch.tensor(dw).exp().item(), height * torch.tensor(dh).exp().item()
    return [max(x - width / 2, 0), max(y - height / 2, 0), min(x + width / 2, 96), min(y + height / 2, 64)]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_boxes_move_as_their_class_wants_it(agnostic, training):
    heads = make_heads(agnostic=agnostic).train(training)
    boxes = torch.tensor([[8.0, 8, 40, 40], [50, 10, 90, 50], [2, 2, 10, 10], [60, 30, 96, 64], [5, 5, 5, 5]])
    logits = torch.tensor([[0.0, 2, 1, 9], [3, 0, 1, 9], [0, 0, 1, 9], [1, 2, 0, 9], [1, 0, 0, 9]])
    best = [1, 0, 2, 1, 0]
    codes = torch.linspace(-9, 9, 5 * (1 if agnostic else K) * 4).reshape(5, -1)
    # two images, the second one with three of the boxes; classes 3 are background
    truth = torch.tensor([2, 3, 0, 3, 3])
    parts = (slice(0, 2), slice(2, 5))
    regions = [make_regions(boxes[part], **({"gt_classes": truth[part]} if training else {})) for part in parts]
    expected_classes = [2, 0, 0, 1, 0] if training else best
    moved = heads.refine((logits, codes), regions, stage=1)
    assert [len(part) for part in moved] == [2, 3]
    found = torch.cat([part.proposal_boxes.tensor for part in moved])
    per_class = codes.reshape(5, -1, 4)
    expected = [
        by_hand(box, per_class[i, 0 if agnostic else label], WEIGHTS[1])
        for i, (box, label) in enumerate(zip(boxes, expected_classes))
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-5)
    assert not found.requires_grad


def test_a_stage_hands_on_all_but_the_ground_truth():
    heads = make_heads().train()
    for predictor in heads.box_predictor:
        fix_outputs(predictor.bbox_pred, [0.0] * (K * 4))
    proposed = torch.tensor([[10.0, 8, 42, 40], [0, 40, 20, 64]])
    with EventStorage():
        sampled = heads.label_and_sample_proposals([make_regions(proposed)], [make_target()], 0)
        losses, (handed_on,) = heads.train_stage(make_features(), sampled, 0)
    assert set(losses) == {"loss_cls_stage0", "loss_box_reg_stage0", "loss_mask_stage0"}
    boxes = handed_on.proposal_boxes.tensor
    assert torch.equal(boxes[boxes[:, 0].argsort(descending=True)], proposed)


def test_losses_by_hand_with_their_weights():
    heads = make_heads().train()
    logits, masks = ([0.5, -1.0, 0.0, 2.0], [1.0, 0.0, 0.0]), ([0.3, -0.2, 0.9])
    for stage in range(3):
        fix_outputs(heads.box_predictor[stage].cls_score, logits[0])
        fix_outputs(heads.box_predictor[stage].bbox_pred, [0.0] * (K * 4))
        fix_outputs(heads.mask_head[stage].predictor, masks)
    # one hit for every stage (IoU 0.88, of class 0, its right 2 of 32 columns outside), one miss; no ground truth
    heads.proposal_append_gt = False
    proposed = torch.tensor([[10.0, 8, 42, 40], [0, 50, 10, 60]])
    with EventStorage() as storage:
        _, losses = heads(None, make_features(), [make_regions(proposed)], [make_target()])
        logged = {name: value for name, (value, _) in storage.latest().items()}
    assert set(losses) == LOSSES
    log_p = torch.tensor(logits[0]).log_softmax(0)
    classification = -(log_p[0] + log_p[3]) / 2
    shared, union, around = 30 * 32, 34 * 32, 34 * 32
    giou = shared / union - (around - union) / around
    regression = 10.0 * (1 - giou) / 2
    inside = 26 / 28  # of the columns: 30 / 32 of 28 is 26.25, and the last column is a quarter full
    p = torch.tensor(masks[0]).sigmoid()
    mask = -(inside * p.log() + (1 - inside) * (1 - p).log())
    for stage, weight in enumerate((1.0, 0.5, 0.25)):
        for name, value in (("cls", classification), ("box_reg", torch.tensor(regression)), ("mask", mask)):
            torch.testing.assert_close(losses[f"loss_{name}_stage{stage}"].detach(), value * weight)
        assert logged[f"stage{stage}/fast_rcnn/cls_accuracy"] == 0.5
        assert logged[f"stage{stage}/mask_rcnn/accuracy"] == pytest.approx(inside)


def test_detections_average_logits_and_mask_probabilities():
    heads = make_heads().eval()
    logits = torch.tensor([[4.0, 0, -5, 1], [-1, 3, -5, 0], [0, 2.5, -5, 4]])
    masks = torch.tensor([[3.0, -1, 0], [0.5, -2, 0], [-1, 0.4, 0]])
    codes = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.5, 0]])
    for stage in range(3):
        fix_outputs(heads.box_predictor[stage].cls_score, logits[stage])
        # the classes want the box at other places: only the best one of the stage counts before the last stage
        by_class = torch.stack([codes[stage] * (1 + label) for label in range(K)])
        fix_outputs(heads.box_predictor[stage].bbox_pred, by_class.flatten())
        fix_outputs(heads.mask_head[stage].predictor, masks[stage])
    box = torch.tensor([20.0, 20, 40, 40])
    with torch.no_grad():
        (found,), losses = heads(None, make_features(), [make_regions(box)])
    assert losses == {}
    scores = logits.mean(0).softmax(0)[:K]
    kept = (scores > 0.05).nonzero().flatten()
    assert kept.tolist() == [0, 1]
    best = scores[kept].argsort(descending=True)
    torch.testing.assert_close(found.scores, scores[kept][best])
    assert found.pred_classes.tolist() == kept[best].tolist()
    moved = torch.tensor(by_hand(box, codes[0] * 1, WEIGHTS[0]))
    moved = torch.tensor(by_hand(moved, codes[1] * 2, WEIGHTS[1]))
    for row, label in enumerate(found.pred_classes.tolist()):
        expected = by_hand(moved, codes[2] * (1 + label), WEIGHTS[2])
        torch.testing.assert_close(found.pred_boxes.tensor[row], torch.tensor(expected), atol=1e-4, rtol=1e-5)
        probability = masks[:, label].sigmoid().mean()
        torch.testing.assert_close(found.pred_masks[row], probability.expand(1, 28, 28))


def test_given_boxes_get_masks_and_nothing_else():
    heads = make_heads().eval()
    given = Instances(SIZE, pred_boxes=Boxes(BOXES), pred_classes=torch.tensor([1, 2]))
    with torch.no_grad():
        (found,) = heads.forward_with_given_boxes(make_features(), [given])
        single = [head(heads._pool_for_masks(make_features(), [given.pred_boxes]), [given]) for head in heads.mask_head]
    assert set(found.get_fields()) == {"pred_boxes", "pred_classes", "pred_masks"}
    assert found.pred_masks.shape == (2, 1, 28, 28)
    assert len(single) == 3
    with pytest.raises(ValueError, match="need pred_boxes and pred_classes"):
        heads.forward_with_given_boxes(make_features(), [make_regions(BOXES)])
    with pytest.raises(RuntimeError, match=r"model\.eval"):
        heads.train().forward_with_given_boxes(make_features(), [given])


@pytest.mark.parametrize("case", ["no proposals, no objects", "no objects", "objects in one image", "no foreground"])
def test_training_with_little_or_nothing(case):
    heads = make_heads(proposal_append_gt=case != "no foreground").train()
    proposed = torch.empty(0, 4) if case.startswith("no proposals") else torch.tensor([[0.0, 50, 10, 60], [5, 5, 5, 5]])
    objects = {"objects in one image": [2, 0], "no foreground": [2, 2]}.get(case, [0, 0])
    features = make_features(images=2)
    with EventStorage():
        _, losses = heads(
            None, features, [make_regions(proposed)] * 2, [make_target(BOXES[:number]) for number in objects]
        )
    assert set(losses) == LOSSES
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
        if case.startswith("no proposals") or ("loss_cls" not in name and case != "objects in one image"):
            assert loss.item() == 0, name
        else:
            assert loss.item() > 0 or "box_reg" in name, name  # the ground-truth boxes are almost where they should be
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for name, buffer in heads.named_buffers():
        assert torch.isfinite(buffer).all(), name


def test_inference_on_nothing():
    heads = make_heads().eval()
    with torch.no_grad():
        found, _ = heads(None, make_features(2), [make_regions(torch.empty(0, 4)), make_regions(BOXES[:0])])
    assert [len(f) for f in found] == [0, 0]
    assert found[0].pred_masks.shape == (0, 1, 28, 28)


@pytest.mark.parametrize("change", [{"mask_head": None}, {"mask_in_features": None}])
def test_boxes_only(change):
    heads = make_heads(**change)
    assert not heads.mask_on
    assert not [name for name in heads.state_dict() if name.startswith("mask")]
    target = make_target()
    target.remove("gt_masks")
    with EventStorage():
        _, losses = heads.train()(None, make_features(), [make_regions(BOXES + 2)], [target])
    assert set(losses) == {name for name in LOSSES if "mask" not in name}
    with torch.no_grad():
        (found,), _ = heads.eval()(None, make_features(), [make_regions(BOXES)])
    assert not found.has("pred_masks")


def test_names_are_those_of_detectron2():
    names = set(make_heads().state_dict())
    for stage in range(3):
        assert {
            f"box_head.{stage}.conv1.weight",
            f"box_head.{stage}.conv1.norm.running_var",
            f"box_head.{stage}.fc1.bias",
            f"box_predictor.{stage}.cls_score.weight",
            f"box_predictor.{stage}.bbox_pred.weight",
            f"mask_head.{stage}.mask_fcn1.weight",
            f"mask_head.{stage}.deconv.weight",
            f"mask_head.{stage}.predictor.bias",
        } <= names
    assert len(names) == 3 * (6 + 2 + 4 + 6)


def test_contradictions_are_named():
    with pytest.raises(UserError, match="same number of each part.*'stage_loss_weights': 2"):
        make_heads(stage_loss_weights=[1.0, 0.5])
    with pytest.raises(UserError, match="same number of each part"):
        make_heads(mask_head=[])
    with pytest.raises(UserError, match=r"stage_loss_weights=\[1.0, -0.5, 0.2\]"):
        make_heads(stage_loss_weights=[1, -0.5, 0.2])
    with pytest.raises(UserError, match="without a mask_pooler"):
        make_heads(mask_pooler=None)
    with pytest.raises(ValueError, match="needs ground truth"):
        make_heads().train()(None, make_features(), [make_regions(BOXES)])


def test_foreground_is_selected():
    regions = make_regions(BOXES.repeat(2, 1), gt_classes=torch.tensor([1, K, -1, 0]))
    (chosen,), (mask,) = select_foreground_proposals([regions], K)
    assert chosen.gt_classes.tolist() == [1, 0]
    assert mask.tolist() == [True, False, False, True]


def test_statistics_keep_their_scope_to_themselves():
    with EventStorage() as storage:
        make_heads().train()(None, make_features(), [make_regions(BOXES + 1)], [make_target()])
        get_event_storage().put_scalar("outside", 1.0)
    assert "outside" in storage.latest()
    assert all(name == "outside" or name.startswith("stage") for name in storage.latest())
