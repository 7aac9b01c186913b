"""Whole detectors: losses, gradients and detections."""

from __future__ import annotations

import random

import numpy as np
import torch
from fidelity.cases_layers import Pyramid
from fidelity.cases_roi_heads import polygons_of
from fidelity.harness import case, error_of, fill, first_weights, generator, gradient_norms, of_instances, random_boxes

from elsa_det import d2

SIZES = [(60, 80), (64, 52)]
CLASSES = 3


def mask_rcnn(**changes) -> d2.GeneralizedRCNN:
    """Of a few kilobytes, with values that follow from the names of its parameters."""
    levels, pool = (
        ["p3", "p4", "p5"],
        {"scales": (1 / 8, 1 / 16, 1 / 32), "sampling_ratio": 0, "pooler_type": "ROIAlignV2"},
    )
    arguments = dict(
        backbone=d2.FPN(Pyramid(), ["res3", "res4", "res5"], 8, top_block=d2.LastLevelMaxPool()),
        proposal_generator=d2.RPN(
            in_features=[*levels, "p6"],
            head=d2.StandardRPNHead(in_channels=8, num_anchors=3),
            anchor_generator=d2.DefaultAnchorGenerator(
                sizes=[[12], [24], [48], [64]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64]
            ),
            anchor_matcher=d2.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=d2.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=32,
            positive_fraction=0.5,
            pre_nms_topk=(100, 50),
            post_nms_topk=(40, 20),
        ),
        roi_heads=d2.StandardROIHeads(
            num_classes=CLASSES,
            batch_size_per_image=16,
            positive_fraction=0.25,
            proposal_matcher=d2.Matcher([0.5], [0, 1], allow_low_quality_matches=False),
            box_in_features=levels,
            box_pooler=d2.ROIPooler(4, **pool),
            box_head=d2.FastRCNNConvFCHead(d2.ShapeSpec(channels=8, height=4, width=4), conv_dims=[], fc_dims=[16]),
            box_predictor=d2.FastRCNNOutputLayers(
                d2.ShapeSpec(channels=16),
                box2box_transform=d2.Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
                num_classes=CLASSES,
                test_score_thresh=0.05,
                test_topk_per_image=6,
            ),
            mask_in_features=levels,
            mask_pooler=d2.ROIPooler(4, **pool),
            mask_head=d2.MaskRCNNConvUpsampleHead(
                d2.ShapeSpec(channels=8, width=4, height=4), num_classes=CLASSES, conv_dims=[8, 8]
            ),
        ),
        pixel_mean=[103.5, 116.3, 123.7],
        pixel_std=[57.4, 57.1, 58.4],
        input_format="BGR",
    )
    return fill(d2.GeneralizedRCNN(**arguments | changes), 0.25)


def retinanet(**changes) -> d2.RetinaNet:
    arguments = dict(
        backbone=d2.FPN(Pyramid(), ["res3", "res4", "res5"], 8, top_block=d2.LastLevelP6P7(8, 8)),
        head=d2.RetinaNetHead(
            input_shape=[d2.ShapeSpec(channels=8)] * 5, num_classes=CLASSES, num_anchors=3, conv_dims=[8, 6]
        ),
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        anchor_generator=d2.DefaultAnchorGenerator(
            sizes=[[16], [32], [64], [128], [256]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]
        ),
        box2box_transform=d2.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=d2.Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=CLASSES,
        test_score_thresh=0.3,
        max_detections_per_image=8,
        pixel_mean=[100.0, 110.0, 120.0],
        pixel_std=[50.0, 55.0, 60.0],
    )
    return fill(d2.RetinaNet(**arguments | changes), 0.2)


def batch(masks: bool = True) -> list[dict]:
    inputs: list[dict] = []
    for index, (height, width) in enumerate(SIZES):
        boxes = random_boxes(2, height, width, seed=index + 5, smallest=14)
        target = d2.Instances((height, width), gt_boxes=d2.Boxes(boxes), gt_classes=torch.tensor([index, 2]))
        if masks:
            target.gt_masks = polygons_of(boxes)
        image = torch.randint(0, 256, (3, height, width), generator=generator(index), dtype=torch.uint8)
        inputs.append({"image": image, "instances": target, "height": height * 2, "width": width * 2})
    inputs[1].pop("height"), inputs[1].pop("width")
    return inputs


def trained(model, inputs: list[dict]) -> dict:
    """One step from a seed."""
    torch.manual_seed(5)
    with d2.EventStorage() as storage:
        losses = model.train()(inputs)
        sum(losses.values()).backward()
        scalars = {name: float(value) for name, (value, _) in sorted(storage.latest().items())}
    gradients = gradient_norms(model)
    return {"losses": dict(sorted(losses.items())), "scalars": scalars, "gradients": gradients}


def tested(model, inputs: list[dict]) -> list:
    with torch.no_grad():
        return [of_instances(each["instances"]) for each in model.eval()(inputs)]


@case(
    "GeneralizedRCNN",
    what="losses, gradients, scalars of a step; detections with masks at the images' own size, given boxes; state",
    rtol=1e-4,
    atol=1e-5,
)
def generalized_rcnn():
    model = mask_rcnn()
    out = trained(model, batch())
    out["detections"] = tested(model, batch())
    with torch.no_grad():
        images = model.preprocess_image(batch())
        given = [
            d2.Instances(s, pred_boxes=d2.Boxes(random_boxes(2, *s)), pred_classes=torch.tensor([0, 2])) for s in SIZES
        ]
        out["given"] = [of_instances(each["instances"]) for each in model.inference(batch(), given)]
        raw = model.inference(batch(), do_postprocess=False)
        out["raw"] = [[list(each.image_size), len(each), list(each.pred_masks.shape)] for each in raw]
    out["padded"] = [
        list(images.tensor.shape),
        [list(size) for size in images.image_sizes],
        images.tensor[:, :, ::13, ::17],
    ]
    out["state"] = {name: list(value.shape) for name, value in model.state_dict().items()}
    out["buffers"] = sorted(name for name, _ in model.named_buffers())
    out["registered"] = [d2.META_ARCH_REGISTRY.get(name).__name__ for name in ("GeneralizedRCNN", "RetinaNet")]
    out["errors"] = [
        error_of(lambda: mask_rcnn(pixel_std=[1.0])),
        error_of(lambda: mask_rcnn(vis_period=2, input_format=None)),
    ]
    return out


@case(
    "GeneralizedRCNN",
    "MaskRCNNConvUpsampleHead",
    what="pictures of the training: names, iterations, sizes and mean colours",
    atol=0.5,
    why="letters, as the drawing library smooths them, of 255 levels",
)
def pictures_of_training():
    model = mask_rcnn(vis_period=2)
    model.roi_heads.mask_head.vis_period = 2
    torch.manual_seed(6)
    random.seed(6)
    np.random.seed(6)  # colours
    with d2.EventStorage() as storage:
        for _ in range(3):
            model.train()(batch())
            storage.step()
        return {
            "pictures": [[name, iteration, list(image.shape)] for name, image, iteration in storage._vis_data],
            "means": [torch.as_tensor(image).double().mean() for _, image, _ in storage._vis_data],
        }


@case(
    "RetinaNet",
    "RetinaNetHead",
    what="losses of two steps, gradients; detections; state",
    rtol=1e-4,
    atol=1e-5,
)
def dense_detector():
    out: dict = {}
    for name, changes in {"usual": {}, "giou": {"box_reg_loss_type": "giou", "focal_loss_alpha": 0.5}}.items():
        model = retinanet(**changes)
        out[name] = {"first": trained(model, batch(masks=False)), "normalizer": float(model.loss_normalizer)}
        out[name]["second"] = trained(model, batch(masks=False))["losses"]
        out[name]["detections"] = tested(model, batch())
    out["state"] = {key: list(value.shape) for key, value in model.state_dict().items()}
    return out


@case(
    "RetinaNetHead",
    what="logits and codes of two levels, with norms; names; first weights",
    rtol=1e-5,
    atol=1e-5,
)
def dense_head():
    out: dict = {}
    settings = {"plain": {}, "norms": {"norm": "GN", "conv_dims": [32, 32]}, "own_norms": {"norm": "BN"}}
    maps = [torch.randn(1, 8, n, n + 1, generator=generator(n)) for n in (3, 2)]
    for name, changes in settings.items():
        arguments = dict(input_shape=[d2.ShapeSpec(channels=8)] * 2, num_classes=3, num_anchors=2, conv_dims=[8, 6])
        made = fill(d2.RetinaNetHead(**arguments | changes), 0.3).eval()
        logits, codes = made(maps)
        out[name] = {
            "logits": logits,
            "codes": codes,
            "state": {k: list(v.shape) for k, v in made.state_dict().items()},
        }
    torch.manual_seed(3)
    fresh = d2.RetinaNetHead(**arguments, prior_prob=0.03)
    out["first_weights"] = first_weights(fresh)
    out["prior"] = float(fresh.cls_score.bias[0].detach())
    return out


class Registered(torch.nn.Module):
    """Something to register."""


@case(
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    what="names, registering, getting, iterating; what is registered twice or not at all",
)
def registries():
    out: dict = {}
    for name in ("BACKBONE_REGISTRY", "META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY"):
        registry = getattr(d2, name)
        registry.register(Registered)
        try:
            out[name] = {
                "name": registry._name,
                "kind": [type(registry).__name__, type(registry).__module__],
                "got": [registry.get("Registered") is Registered, "Registered" in registry, "Nothing" in registry],
                "listed": "Registered" in dict(registry),
                "errors": [error_of(lambda registry=registry: registry.register(Registered))],
                "missing": error_of(lambda registry=registry: registry.get("Nothing")),
            }
        finally:
            del registry._obj_map["Registered"]
    return out
