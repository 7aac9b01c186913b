"""Box coding."""

from __future__ import annotations

import torch
from d2_access import d2_module
from fidelity.harness import case, generator, random_boxes

from elsa_det import d2


@case(
    "Box2BoxTransform",
    what="encoding, decoding (clamped, several classes, half precision), dense losses",
    rtol=1e-5,
    atol=1e-5,
)
def box_coding():
    source, target = random_boxes(8, 50, 60, 1), random_boxes(8, 50, 60, 2)
    deltas = torch.randn(8, 12, generator=generator(3)) * 2
    out = {}
    for name, made in {
        "rpn": d2.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "roi": d2.Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        "clamped": d2.Box2BoxTransform((1.0, 2.0, 0.5, 0.7), scale_clamp=0.8),
    }.items():
        codes = made.get_deltas(source, target)
        out[name] = {
            "encoded": codes,
            "decoded": made.apply_deltas(codes, source),
            "classes": made.apply_deltas(deltas, source),
            "half": made.apply_deltas(deltas.half(), source),
            "none": made.apply_deltas(deltas[:0], source[:0]),
            "attributes": [list(map(float, made.weights)), float(made.scale_clamp)],
        }
    loss = d2_module("modeling.box_regression")._dense_box_regression_loss
    anchors = [d2.Boxes(source[:3]), d2.Boxes(source[3:])]
    predicted = [torch.randn(2, n, 4, generator=generator(n)) * 0.3 for n in (3, 5)]
    wanted = [target, random_boxes(8, 50, 60, 7)]
    foreground = torch.rand(2, 8, generator=generator(9)) < 0.6
    transform = d2.Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    for kind, beta in (("smooth_l1", 0.0), ("smooth_l1", 0.4), ("giou", 0.0), ("diou", 0.0), ("ciou", 0.0)):
        out[f"loss_{kind}_{beta}"] = float(
            loss(anchors, transform, predicted, wanted, foreground, box_reg_loss_type=kind, smooth_l1_beta=beta)
        )
    return out
