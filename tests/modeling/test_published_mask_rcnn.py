"""A published Mask R-CNN, recorded step by step, against ours with its weights converted.

The model is that of ``configs/common/models/mask_rcnn.py`` with the recorded one's widths. Differences by design are in
docs/detector_differences.md, and those that show in this case are asserted here.
"""

from __future__ import annotations

import numpy as np
import published_detectors as published
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from elsa_det.checkpoint import convert_detector, convert_detector_state_dict
from elsa_det.d2 import BitMasks, Boxes, EventStorage, ImageList, Instances, detector_postprocess, instantiate

G = published.recorded()
SIZE = tuple(G["img_meta"]["img_shape"][:2])
LEVELS = ("p2", "p3", "p4", "p5", "p6")


def build(**proposals):
    cfg = published.config()
    cfg.model.proposal_generator.update(proposals)
    model = instantiate(cfg.model)
    model.load_state_dict(convert_detector_state_dict(G["state_dict"]))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    """With zero-area proposals kept, as the published code keeps them."""
    return build(min_box_size=-1)


def images():
    return ImageList(G["img"], [SIZE])


def recorded_maps():
    return dict(zip(LEVELS, G["fpn"], strict=True))


def close(got, want, atol):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@torch.no_grad()
def test_maps(model):
    features = model.backbone(G["img"])
    assert list(features) == list(LEVELS)
    for name, want in recorded_maps().items():
        close(features[name], want, 1e-5)


@torch.no_grad()
def test_rpn_outputs(model):
    logits, deltas = model.proposal_generator.rpn_head(G["fpn"])
    for got, want in zip([*logits, *deltas], [*G["rpn_cls"], *G["rpn_reg"]], strict=True):
        close(got, want, 1e-5)


def pairs(got, want, tolerance) -> tuple[Tensor, Tensor]:
    """Indices of rows that agree, each row used once."""
    distance = (got[:, None] - want[None]).abs().amax(dim=2)
    found, taken = [], set()
    for j in range(len(want)):
        for i in distance[:, j].argsort().tolist():
            if distance[i, j] > tolerance:
                break
            if i not in taken:
                taken.add(i)
                found.append((i, j))
                break
    index = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
    return index[:, 0], index[:, 1]


def scored(proposals: Instances) -> Tensor:
    return torch.cat([proposals.proposal_boxes.tensor, proposals.objectness_logits.sigmoid()[:, None]], dim=1)


@torch.no_grad()
def test_proposals(model):
    (proposals,), _ = model.proposal_generator(images(), recorded_maps())
    got, want = scored(proposals), G["proposals"]
    ours, theirs = pairs(got, want, 1e-2)
    assert len(got) == len(want) == len(ours)
    close(got[ours, 4], want[theirs, 4], 1e-6)
    zero_area = (want[:, 2] <= want[:, 0]) | (want[:, 3] <= want[:, 1])
    (default,), _ = build().proposal_generator(images(), recorded_maps())
    assert len(default) == len(want) - int(zero_area.sum())


@torch.no_grad()
def test_box_head_on_fixed_regions(model):
    heads, stage = model.roi_heads, G["fixed_stages"][0]
    rois = G["fixed_rois"][:, 1:]
    levels = torch.log2(Boxes(rois).area().sqrt() / heads.box_pooler.canonical_box_size).floor() + 4
    assert torch.equal(levels.clamp(2, 5).long() - 2, G["fixed_roi_levels"])
    pooled = heads.box_pooler(G["fpn"][:4], [Boxes(rois)])
    predictions = heads.box_predictor(heads.box_head(pooled))
    close(predictions[0], stage["cls_score_on_fixed_rois"], 1e-5)
    close(predictions[1], stage["bbox_pred_on_fixed_rois"], 1e-5)
    regions = [Instances(SIZE, proposal_boxes=Boxes(rois))]
    (scores,) = heads.box_predictor.predict_probs(predictions, regions)
    close(scores, G["fixed_scores"], 1e-6)
    (decoded,) = heads.box_predictor.predict_boxes(predictions, regions)
    boxes = Boxes(decoded.reshape(-1, 4).clone())
    boxes.clip(SIZE)
    close(boxes.tensor.view_as(decoded), stage["decoded_clipped"], 1e-3)


@torch.no_grad()
def test_mask_head_on_fixed_regions(model):
    heads = model.roi_heads
    pooled = heads.mask_pooler(G["fpn"][:4], [Boxes(G["fixed_mask_rois"][:, 1:])])
    logits = heads.mask_head.layers(pooled)[torch.arange(len(pooled)), G["fixed_mask_labels"]]
    close(logits, G["fixed_stages"][0]["mask_logits_own_label"], 1e-5)


def unpack(masks_packed, shape):
    bits = np.unpackbits(masks_packed.numpy(), axis=1)[:, : shape[1] * shape[2]]
    return torch.from_numpy(bits).view(*shape).bool()


def copy(found: Instances) -> Instances:
    """Post-processing changes boxes in place."""
    return Instances(found.image_size, **{key: value.clone() for key, value in found.get_fields().items()})


@pytest.mark.parametrize("name", ["det", "det_rescaled"])
@torch.no_grad()
def test_detections(model, name):
    """From the image to boxes, classes, scores and masks in the original image."""
    want = G[name]
    height, width = want["masks_shape"][1:]
    features = model.backbone(G["img"])
    (proposals,), _ = model.proposal_generator(images(), features)
    (found,), _ = model.roi_heads(images(), features, [proposals])
    # masks for a threshold a little below and above a half: where they differ, rounding decides
    low, high = (detector_postprocess(copy(found), height, width, 0.5 + shift) for shift in (-4e-6, 4e-6))
    found = low
    # class and score have to agree as well as the box does
    got = torch.cat([found.pred_boxes.tensor, found.scores[:, None] * 100, found.pred_classes[:, None].float()], 1)
    recorded = torch.cat([want["bboxes"][:, :4], want["bboxes"][:, 4:] * 100, want["labels"][:, None].float()], 1)
    ours, theirs = pairs(got, recorded, 1e-2)
    assert len(found) == len(recorded) == len(ours)
    masks = unpack(want["masks_packed"], want["masks_shape"])[theirs]
    assert not (high.pred_masks[ours] & ~masks).any()
    assert not (masks & ~low.pred_masks[ours]).any()
    assert int((low.pred_masks ^ high.pred_masks).sum()) < 10  # of more than a million


@torch.no_grad()
def test_zero_area_proposals_bring_no_detections(model):
    """What the switch costs: nothing in this case."""
    results = []
    for detector in (model, build()):
        features = detector.backbone(G["img"])
        (proposals,), _ = detector.proposal_generator(images(), features)
        (found,), _ = detector.roi_heads(images(), features, [proposals])
        results.append(found)
    kept, dropped = results
    assert torch.equal(kept.pred_boxes.tensor, dropped.pred_boxes.tensor)
    assert torch.equal(kept.scores, dropped.scores)


def rpn_losses(model, assigned):
    """Losses of the RPN for the recorded assignment, with the published normaliser: the number of sampled anchors."""
    rpn = model.proposal_generator
    features = model.backbone(G["img"])
    logits, deltas = rpn.rpn_head([features[name] for name in LEVELS])
    anchors = rpn.anchor_generator(G["fpn"])
    flat_logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    flat_deltas = [x.permute(0, 2, 3, 1).reshape(1, -1, 4) for x in deltas]
    labels = torch.full((len(assigned["labels"]),), -1, dtype=torch.int8)
    sampled = assigned["sampled"]
    labels[sampled] = (assigned["labels"][sampled] == 0).to(torch.int8)  # the recorded 0 is the object
    recorded, sources = G["train"]["rpn_all"], Boxes.cat(anchors).tensor
    boxes, positives = torch.zeros_like(sources), recorded["positives"]
    boxes[positives] = rpn.box2box_transform.apply_deltas(recorded["bbox_targets_of_positives"], sources[positives])
    losses = rpn.losses(anchors, flat_logits, [labels], flat_deltas, [boxes])
    counted = assigned["num_total_pos"] + assigned["num_total_neg"]
    return {name: loss * (rpn.batch_size_per_image / counted) for name, loss in losses.items()}


def training_model():
    return build(min_box_size=-1).train()


def test_assignment_of_anchors():
    """Without sampling, ours labels every anchor as recorded, and gives it the same ground truth."""
    train, rpn = G["train"], build(batch_size_per_image=10**6, positive_fraction=1.0).proposal_generator
    truth = Instances(SIZE, gt_boxes=Boxes(train["gt_bboxes"]))
    anchors = rpn.anchor_generator(G["fpn"])
    (labels,), (boxes,) = rpn.label_and_sample_anchors(anchors, [truth])
    recorded = train["rpn_all"]
    want = torch.full_like(labels, -1)
    want[recorded["sampled"]] = (recorded["labels"][recorded["sampled"]] == 0).to(want.dtype)
    assert torch.equal(labels, want)
    positives = recorded["positives"]
    targets = rpn.box2box_transform.get_deltas(Boxes.cat(anchors).tensor[positives], boxes[positives])
    close(targets, recorded["bbox_targets_of_positives"], 1e-6)


def test_assignment_of_regions(model):
    train, stage = G["train"], G["train"]["stages"][0]
    regions = torch.cat([train["gt_bboxes"], train["proposals"]])
    matched, labels = model.roi_heads.proposal_matcher(box_iou(train["gt_bboxes"], regions))
    assert torch.equal(torch.where(labels == 1, matched + 1, 0), stage["gt_inds_assigned"])


@pytest.mark.parametrize("name", ["rpn_all", "rpn_sampled"])
@torch.no_grad()
def test_rpn_losses_of_the_recorded_assignment(name):
    want = G["train"][name]
    with EventStorage():
        losses = rpn_losses(training_model(), want)
    close(losses["loss_rpn_cls"].item(), want["loss_rpn_cls_sum"], 1e-5)
    close(losses["loss_rpn_loc"].item(), want["loss_rpn_bbox_sum"], 1e-5)


def sampled_regions() -> Instances:
    """The recorded sample of regions with its targets."""
    train, stage = G["train"], G["train"]["stages"][0]
    foreground = len(stage["pos_inds"])
    matched = torch.zeros(len(stage["rois"]), dtype=torch.int64)
    matched[:foreground] = stage["pos_assigned_gt_inds"]
    masks = unpack(train["gt_masks_packed"], train["gt_masks_shape"])
    regions = Instances(SIZE)
    regions.proposal_boxes = Boxes(stage["rois"][:, 1:])
    regions.gt_classes = stage["labels"]
    regions.gt_boxes = Boxes(train["gt_bboxes"][matched])
    regions.gt_masks = BitMasks(masks[matched])
    return regions


def test_losses_and_gradients_of_the_recorded_assignment():
    want = G["train"]
    model = training_model()
    heads = model.roi_heads
    with EventStorage():
        features = model.backbone(G["img"])
        losses = {
            **heads._forward_box(features, [sampled_regions()]),
            **heads._forward_mask(features, [sampled_regions()]),
        }
        losses |= rpn_losses(model, want["rpn_all"])
    recorded = want["losses"]
    close(losses["loss_cls"].item(), recorded["loss_cls"], 1e-5)
    close(losses["loss_box_reg"].item(), recorded["loss_bbox"], 1e-5)
    close(losses["loss_mask"].item(), recorded["loss_mask"], 1e-5)
    total = sum(losses.values())
    close(total.item(), want["total_loss"], 1e-5)
    total.backward()
    names = convert_detector(G["state_dict"]).renamed
    parameters = dict(model.named_parameters())
    compared = 0
    for published_name, norm in want["grad_norm"].items():
        gradient = parameters[names[published_name]].grad
        got = -1.0 if gradient is None else gradient.norm().item()
        assert got == pytest.approx(norm, rel=2e-4, abs=1e-6), published_name
        compared += 1
    assert compared == len(parameters)


def test_mask_targets_of_the_recorded_assignment():
    stage = G["train"]["stages"][0]
    regions = sampled_regions()[: len(stage["pos_inds"])]
    targets = regions.gt_masks.crop_and_resize(regions.proposal_boxes.tensor, 28)
    assert torch.equal(targets, stage["mask_targets"].bool())
