"""Pooling of regions."""

from __future__ import annotations

import torch
from d2_access import d2_module
from fidelity.harness import case, condensed, error_of, generator, random_boxes

from elsa_det import d2


@case(
    "ROIPooler",
    what="regions of four levels, aligned and not, by maximum; levels; gradients; no regions; errors",
    rtol=1e-5,
    atol=1e-5,
)
def pooling():
    maps = [torch.randn(2, 5, 128 // s, 160 // s, generator=generator(s)) for s in (4, 8, 16, 32)]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    boxes = [d2.Boxes(random_boxes(6, 128, 160, 1, 3) * 1.1 - 4), d2.Boxes(random_boxes(4, 128, 160, 2, 3))]
    out = {}
    for kind, ratio, size in (("ROIAlignV2", 0, 4), ("ROIAlignV2", 2, (3, 3)), ("ROIAlign", 2, 4), ("ROIPool", 0, 3)):
        pooler = d2.ROIPooler(size, scales, ratio, kind, canonical_box_size=60, canonical_level=4)
        inputs = [m.clone().requires_grad_() for m in maps]
        pooled = pooler(inputs, boxes)
        (pooled * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum().backward()
        out[f"{kind}_{ratio}"] = {
            "pooled": condensed(pooled),
            "gradients": [condensed(m.grad) for m in inputs],
            "none": list(pooler(maps, [boxes[0][:0], boxes[1][:0]]).shape),
            "one_empty": condensed(pooler(maps, [boxes[0][:0], boxes[1]])),
        }
    single = d2.ROIPooler(4, [1 / 8], 0, "ROIAlignV2")
    out["single"] = condensed(single(maps[1:2], boxes))
    poolers = d2_module("modeling.poolers")
    large = [d2.Boxes(torch.tensor([[0, 0, s, s] for s in (0.0, 1.0, 40, 112, 223.9, 224, 300, 448, 900)]))]
    out["levels"] = poolers.assign_boxes_to_levels(large, 2, 5, 224, 4)
    out["format"] = poolers.convert_boxes_to_pooler_format(boxes)
    out["errors"] = [
        error_of(lambda: d2.ROIPooler(4, scales, 0, "Other")),
        error_of(lambda: d2.ROIPooler(4, [1 / 4, 1 / 16], 0, "ROIAlignV2")),
        error_of(lambda: d2.ROIPooler(4, [1 / 5], 0, "ROIAlignV2")),
        error_of(lambda: d2.ROIPooler(4, [1 / 4, 1 / 9], 0, "ROIAlignV2")),
    ]
    return out
