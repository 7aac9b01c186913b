"""A published Cascade Mask R-CNN, recorded step by step from the maps of its backbone on, and ours with its weights."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elsa_det import get_config
from elsa_det.checkpoint import Conversion, take_parts
from elsa_det.d2 import BitMasks, Boxes, EventStorage, ImageList, Instances, detector_postprocess, instantiate

GOLDEN = Path(__file__).parents[2] / "golden" / "cascade_mask_rcnn.pt"
STAGES = range(3)


@functools.cache
def golden() -> Any:
    return torch.load(GOLDEN, weights_only=True)


class RecordedMaps(nn.Module):
    """In the place of the backbone, which has tests of its own."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(zip(("p0", "p1", "p2", "p3"), golden()["backbone"]))


@functools.cache
def converted() -> Conversion:
    return take_parts(golden()["state_dict"], ["neck", "rpn", "roi_heads"])


@functools.cache
def build_once() -> Any:
    """Our recipe at the size of the recorded model."""
    published = golden()["config"]
    cfg = get_config("coco/elsa_s_cascade_1x")
    backbone, model = published["backbone"], cfg.model
    for key in ("embed_dim", "depths", "num_heads"):
        model.backbone.bottom_up[key] = backbone[key]
    model.backbone.out_channels = published["neck"]["out_channels"]
    model.proposal_generator.head.conv_dims = [published["rpn_head"]["feat_channels"]]
    box, mask = published["roi_head"]["bbox_head"][0], published["roi_head"]["mask_head"]
    model.roi_heads.num_classes = box["num_classes"]
    model.roi_heads.box_head[0].conv_dims = [box["conv_out_channels"]] * box["num_shared_convs"]
    model.roi_heads.box_head[0].fc_dims = [box["fc_out_channels"]]
    model.roi_heads.mask_head[0].conv_dims = [mask["conv_out_channels"]] * (mask["num_convs"] + 1)
    # The published RPN keeps proposals without area.
    model.proposal_generator.min_box_size = -1.0
    built = instantiate(model)
    built.backbone.bottom_up = RecordedMaps()
    built.load_state_dict(converted().state_dict)
    return built


@pytest.fixture
def detector() -> Any:
    """In inference mode. It is shared, so tests leave it without gradients."""
    built = build_once().eval()
    yield built
    built.eval().zero_grad()


def image() -> Tensor:
    """Of the size of the padded one."""
    height, width, channels = golden()["img_meta"]["pad_shape"]
    return torch.zeros(1, channels, height, width)


def image_size() -> tuple[int, int]:
    return tuple(golden()["img_meta"]["img_shape"][:2])


@functools.cache
def feature_maps() -> dict[str, Tensor]:
    with torch.no_grad():
        return build_once().eval().backbone(image())


def regions(boxes: Tensor) -> list[Instances]:
    """RoIs with or without the index of their image."""
    return [Instances(image_size(), proposal_boxes=Boxes(boxes[:, -4:].clone()))]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def same_set(found: Tensor, expected: Tensor, atol: float) -> Tensor:
    """Each row has its partner within ``atol``, one to one. Returns the row of ``found`` for each of ``expected``."""
    assert len(found) == len(expected)
    distance = (found[None] - expected[:, None]).abs().amax(dim=-1)
    nearest = distance.argmin(dim=1)
    assert distance.amin(dim=1).max() <= atol
    if len(nearest.unique()) < len(found):  # rows that are alike, such as empty boxes
        assert distance.amin(dim=0).max() <= atol
    return nearest


def test_maps_and_region_proposal_network(detector):
    maps = feature_maps()
    for ours, published in zip(("p2", "p3", "p4", "p5", "p6"), golden()["fpn"]):
        close(maps[ours], published)
    with torch.no_grad():
        logits, codes = detector.proposal_generator.rpn_head(list(maps.values()))
    for found, published in zip((*logits, *codes), (*golden()["rpn_cls"], *golden()["rpn_reg"])):
        close(found, published)


def test_proposals(detector):
    images = ImageList(image(), [image_size()])
    with torch.no_grad():
        (found,), _ = detector.proposal_generator(images, feature_maps())
    published = golden()["proposals"][:, :5]
    scored = torch.cat([found.proposal_boxes.tensor, found.objectness_logits.sigmoid()[:, None]], dim=1)
    same_set(scored, published, 1e-2)


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_stage_on_fixed_regions(detector, stage):
    heads, published = detector.roi_heads, golden()["fixed_stages"][stage]
    inside = regions(published["rois_in"])
    predictions = heads.predict(feature_maps(), inside, stage)
    close(predictions[0], published["cls_score"])
    close(predictions[1], published["bbox_pred"])
    (decoded,) = heads.box_predictor[stage].predict_boxes(predictions, inside)
    boxes = Boxes(decoded.reshape(-1, 4).clone())
    boxes.clip(image_size())
    close(boxes.tensor, published["decoded_clipped"].reshape(-1, 4), atol=1e-3)
    if stage + 1 not in STAGES:
        return
    (moved,) = heads.refine(predictions, inside, stage)
    close(moved.proposal_boxes.tensor, published["refined_rois"][:, -4:], atol=1e-3)
    assert torch.equal(predictions[0][:, :-1].argmax(1), published["refine_labels"])


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_every_head_on_the_same_regions(detector, stage):
    heads, published = detector.roi_heads, golden()["fixed_stages"][stage]
    logits, codes = heads.predict(feature_maps(), regions(golden()["fixed_rois"]), stage)
    close(logits, published["cls_score_on_fixed_rois"])
    close(codes, published["bbox_pred_on_fixed_rois"])
    boxes = Boxes(golden()["fixed_mask_rois"][:, -4:])
    masks = heads.mask_head[stage].layers(heads._pool_for_masks(feature_maps(), [boxes]))
    own = masks[torch.arange(len(masks)), golden()["fixed_mask_labels"]]
    close(own, published["mask_logits_own_label"].reshape(own.shape))


@torch.no_grad()
def test_averages(detector):
    heads = detector.roi_heads
    logits, current = [], regions(golden()["fixed_rois"])
    for stage in STAGES:
        predictions = heads.predict(feature_maps(), current, stage)
        logits.append(predictions[0])
        current = heads.refine(predictions, current, stage)
    mean = torch.stack(logits).mean(0)
    close(mean, golden()["fixed_mean_cls_score"])
    close(mean.softmax(1), golden()["fixed_scores"])
    labels = golden()["fixed_mask_labels"]
    given = Instances(image_size(), pred_boxes=Boxes(golden()["fixed_mask_rois"][:, -4:].clone()), pred_classes=labels)
    (found,) = heads.forward_with_given_boxes(feature_maps(), [given])
    published = golden()["fixed_mean_mask_prob_own_label"]
    close(found.pred_masks.reshape(published.shape), published)


def test_detections(detector):
    with torch.no_grad():
        (found,), _ = detector.roi_heads(None, feature_maps(), regions(golden()["proposals"][:, :4]))
    published = golden()["det"]
    scored = torch.cat([found.pred_boxes.tensor, found.scores[:, None] * 100], dim=1)
    expected = published["bboxes"] * torch.tensor([1, 1, 1, 1, 100.0])
    # a class is far from every other one
    ours = torch.cat([scored, found.pred_classes[:, None] * 1e4], dim=1)
    partner = same_set(ours, torch.cat([expected, published["labels"][:, None] * 1e4], dim=1), 1e-2)
    assert len(partner.unique()) == len(found)
    close(found.pred_masks[partner][:, 0], published["mask_probs"].reshape(-1, 28, 28), atol=1e-4)
    for published in (golden()["det"], golden()["det_rescaled"]):
        count, height, width = published["masks_shape"]
        pasted = detector_postprocess(copy.deepcopy(found), height, width)
        assert len(pasted) == count  # each has an area
        close(pasted.pred_boxes.tensor[partner], published["bboxes"][:, :4], atol=1e-2)
        wrong = pasted.pred_masks[partner] != unpack(published["masks_packed"], published["masks_shape"])
        assert wrong.float().mean() < 1e-5


def unpack(packed: Tensor, shape: list[int]) -> Tensor:
    """Masks from their bits."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1)).bool().reshape(shape)


@functools.cache
def objects() -> Instances:
    train = golden()["train"]
    target = Instances(image_size())
    target.gt_boxes = Boxes(train["gt_bboxes"])
    target.gt_classes = train["gt_labels"]
    target.gt_masks = BitMasks(unpack(train["gt_masks_packed"], train["gt_masks_shape"]))
    return target


def set_training(heads: Any) -> None:
    """As the recording has it: the code of training, the norms with their running statistics."""
    heads.training = True
    for head in heads.mask_head:
        head.training = True


def sampled_as_published(stage: int) -> Instances:
    """The regions of a stage with their recorded assignment, positive ones first."""
    published, target = golden()["train"]["stages"][stage], objects()
    boxes = torch.cat([target.gt_boxes.tensor, published["proposals_in"][:, :4]])
    positive, negative = published["pos_inds"], published["neg_inds"]
    matched = torch.cat([published["pos_assigned_gt_inds"], torch.zeros_like(negative)])
    sampled = Instances(image_size(), proposal_boxes=Boxes(boxes[torch.cat([positive, negative])]))
    sampled.is_ground_truth = torch.cat([positive, negative]) < len(target)
    background = torch.full_like(negative, build_once().roi_heads.num_classes)
    sampled.gt_classes = torch.cat([target.gt_classes[published["pos_assigned_gt_inds"]], background])
    sampled.gt_boxes, sampled.gt_masks = target.gt_boxes[matched], target.gt_masks[matched]
    return sampled


@pytest.mark.parametrize("stage", STAGES)
def test_losses_for_the_same_assignment(detector, stage):
    set_training(detector.roi_heads)
    train = golden()["train"]
    with EventStorage():
        losses, (handed_on,) = detector.roi_heads.train_stage(feature_maps(), [sampled_as_published(stage)], stage)
    weight = detector.roi_heads.stage_loss_weights[stage]
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box_reg", "loss_bbox"), ("loss_mask", "loss_mask")):
        found = losses[f"{ours}_stage{stage}"].item()
        assert found == pytest.approx(float(train["stages"][stage][theirs]) * weight, rel=1e-4)
        assert found == pytest.approx(float(train["losses"][f"s{stage}.{theirs}"]), rel=1e-4)
    if stage + 1 in STAGES:
        following = train["stages"][stage + 1]["proposals_in"]
        close(handed_on.proposal_boxes.tensor, following[:, :4], atol=1e-3)


def test_our_own_assignment_is_the_same(detector):
    heads = detector.roi_heads
    set_training(heads)
    for stage in STAGES:
        published = golden()["train"]["stages"][stage]
        with EventStorage():
            (sampled,) = heads.label_and_sample_proposals(regions(published["proposals_in"][:, :4]), [objects()], stage)
        expected = sampled_as_published(stage)

        def rows(of: Instances) -> Tensor:
            labelled = torch.stack([of.gt_classes, of.is_ground_truth.long()], dim=1)
            return torch.cat([of.proposal_boxes.tensor, labelled * 1e4], dim=1)

        same_set(rows(sampled), rows(expected), 1e-4)


def rpn_losses(rpn: Any, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of all anchors. The published code divides by their number, ours by the size of the sample that was asked for."""
    published = golden()["train"]["rpn_all"]
    usual, rpn.training = rpn.batch_size_per_image, True
    rpn.batch_size_per_image = asked = published["sampler_num"]
    with EventStorage():
        _, losses = rpn(ImageList(image(), [image_size()]), maps, [objects()])
    rpn.batch_size_per_image = usual
    count = int(published["num_total_pos"]) + int(published["num_total_neg"])
    losses = {name: loss * asked / count for name, loss in losses.items()}
    for ours, theirs in (("loss_rpn_cls", "loss_rpn_cls"), ("loss_rpn_loc", "loss_rpn_bbox")):
        assert losses[ours].item() == pytest.approx(float(published[f"{theirs}_sum"]), rel=1e-4)
    return losses


# On which side of the ReLU the recording has the one activation of a layer that is all but zero. Convolutions of
# processors with and without AVX-512 round to either side.
SIDES = {("conv4", 0): 1, ("conv1", 2): 1, ("conv2", 2): -1}


def as_recorded(side: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    size = output.detach().abs()
    assert size.min() < 1e-5
    return torch.where(size == size.min(), output - output.detach() + side * size, output)


def test_whole_training_step_and_gradients(detector):
    """From the proposals on, with our own assignment; the gradient of every weight, with the loss of every anchor."""
    set_training(detector.roi_heads)
    train = golden()["train"]
    maps = detector.backbone(image())
    norms_of = {place: getattr(detector.roi_heads.box_head[place[1]], place[0]).norm for place in SIDES}
    kinks = [norms_of[at].register_forward_hook(functools.partial(as_recorded, SIDES[at])) for at in SIDES]
    first = regions(train["stages"][0]["proposals_in"][:, :4])
    with EventStorage():
        _, losses = detector.roi_heads(None, maps, first, [objects()])
    for kink in kinks:
        kink.remove()
    for stage in STAGES:
        for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box_reg", "loss_bbox"), ("loss_mask", "loss_mask")):
            found = losses[f"{ours}_stage{stage}"].item()
            assert found == pytest.approx(float(train["losses"][f"s{stage}.{theirs}"]), rel=1e-4)
    losses |= rpn_losses(detector.proposal_generator, maps)
    total = sum(losses.values())
    assert total.item() == pytest.approx(float(train["total_loss"]), rel=1e-4)
    total.backward()
    norms = {name: p.grad.norm().item() for name, p in detector.named_parameters()}
    published = {converted().renamed[name]: n for name, n in train["grad_norm"].items() if name in converted().renamed}
    assert norms == pytest.approx(published, rel=1e-4)
