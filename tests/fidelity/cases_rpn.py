"""The region proposal network."""

from __future__ import annotations

import torch
from d2_access import d2_module
from fidelity.harness import case, fill, first_weights, generator, gradient_norms, of_instances, random_boxes

from elsa_det import d2

SIZES = [(60, 80), (64, 70)]


def features() -> dict[str, torch.Tensor]:
    return {
        f"p{level}": torch.randn(2, 6, 64 // stride, 80 // stride, generator=generator(level))
        for level, stride in ((2, 4), (3, 8), (4, 16))
    }


def objects() -> list:
    targets = []
    for seed, size in enumerate(SIZES):
        targets.append(d2.Instances(size))
        targets[-1].gt_boxes = d2.Boxes(random_boxes(4, *size, seed=seed + 20, smallest=8))
        targets[-1].gt_classes = torch.arange(4) % 3
    return targets


def rpn(**changes):
    return fill(
        d2.RPN(
            **dict(
                in_features=["p2", "p3", "p4"],
                head=d2.StandardRPNHead(in_channels=6, num_anchors=3),
                anchor_generator=d2.DefaultAnchorGenerator(
                    sizes=[[8], [16], [32]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8, 16]
                ),
                anchor_matcher=d2.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
                box2box_transform=d2.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
                batch_size_per_image=64,
                positive_fraction=0.5,
                pre_nms_topk=(200, 100),
                post_nms_topk=(60, 30),
            )
            | changes
        )
    )


@case(
    "RPN",
    "StandardRPNHead",
    what="losses, gradients, sampled anchors, proposals, in training and inference; weights, limits of size and border",
    rtol=1e-4,
    atol=1e-5,
)
def training_and_inference():
    images = d2.ImageList(torch.zeros(2, 3, 64, 80), SIZES)
    out = {}
    for name, changes in {
        "usual": {},
        "giou": {"box_reg_loss_type": "giou", "loss_weight": 0.7},
        "limits": {
            "min_box_size": 6.0,
            "anchor_boundary_thresh": 2,
            "smooth_l1_beta": 0.2,
            "nms_thresh": 0.5,
            "loss_weight": {"loss_rpn_cls": 2.0, "loss_rpn_loc": 0.5},
        },
    }.items():
        made = rpn(**changes)
        made.train()
        torch.manual_seed(5)
        with d2.EventStorage() as storage:
            proposals, losses = made(images, features(), objects())
            sum(losses.values()).backward()
            scalars = {k: v[0] for k, v in storage.latest().items()}
        made.eval()
        with torch.no_grad():
            tested, nothing = made(images, features())
        out[name] = {
            "losses": dict(sorted(losses.items())),
            "gradients": gradient_norms(made),
            "scalars": {name: float(value) for name, value in sorted(scalars.items())},
            "trained": [of_instances(p) for p in proposals],
            "tested": [of_instances(p) for p in tested],
            "losses_in_inference": sorted(nothing),
        }
    made = rpn()
    torch.manual_seed(6)
    anchors = made.anchor_generator(list(features().values()))
    labels, boxes = made.label_and_sample_anchors(anchors, objects())
    out["labels"] = list(labels)
    out["matched_boxes"] = [b[label == 1] for b, label in zip(boxes, labels)]
    nobody = [
        d2.Instances(size, gt_boxes=d2.Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long()) for size in SIZES
    ]
    labels, boxes = made.label_and_sample_anchors(anchors, nobody)
    out["nobody"] = [[int((label == k).sum()) for k in (-1, 0, 1)] for label in labels]
    return out


@case(
    "StandardRPNHead",
    what="logits and codes with one and several convolutions; parameter names and shapes",
    rtol=1e-5,
    atol=1e-5,
)
def head():
    out = {}
    for name, changes in {"usual": {}, "deep": {"conv_dims": [5, 7]}, "same": {"conv_dims": [-1, -1]}}.items():
        made = fill(d2.StandardRPNHead(in_channels=6, num_anchors=2, **changes), 0.3)
        logits, codes = made([torch.randn(1, 6, 4, 5, generator=generator(2))])
        out[name] = {
            "logits": logits,
            "codes": codes,
            "parameters": {k: list(v.shape) for k, v in made.state_dict().items()},
        }
    torch.manual_seed(3)
    made = d2.StandardRPNHead(in_channels=64, num_anchors=3)
    out["first_weights"] = first_weights(made)
    return out


@case("RPN", what="proposals kept from boxes with infinite values, in inference", rtol=1e-6, atol=1e-5)
def top_proposals():
    find = d2_module("modeling.proposal_generator.proposal_utils").find_top_rpn_proposals
    boxes = [torch.stack([random_boxes(40, 60, 80, seed + image) * 1.2 - 5 for image in (0, 1)]) for seed in (30, 40)]
    logits = [torch.randn(2, 40, generator=generator(seed)) for seed in (50, 51)]
    boxes[0][0, 3] = float("inf")
    logits[1][1, 5] = float("nan")
    return {"kept": [of_instances(p) for p in find(boxes, logits, SIZES, 0.6, 25, 12, 3.0, False)]}
