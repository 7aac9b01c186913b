"""Matching of anchors and proposals with objects, and the overlaps it stands on."""

from __future__ import annotations

import torch
from d2_access import d2_module
from fidelity.harness import case, error_of, generator, random_boxes

from elsa_det import d2


@case("Matcher", what="matches and labels, with ties, low-quality matches, several thresholds, no objects; errors")
def matcher():
    quality = torch.rand(5, 60, generator=generator(1)).round(decimals=2)
    quality[:, 7] = 0.0
    quality[2] = quality[2] * 0.3
    quality[3, 10] = quality[3, 20] = quality[3].max()  # a tie
    out = {}
    for name, arguments in {
        "rpn": ([0.3, 0.7], [0, -1, 1], True),
        "roi": ([0.5], [0, 1], False),
        "low": ([0.95], [0, 1], True),
        "three": ([0.2, 0.4, 0.6], [0, -1, 0, 1], False),
    }.items():
        made = d2.Matcher(arguments[0], arguments[1], allow_low_quality_matches=arguments[2])
        out[name] = list(made(quality))
        out[f"{name}_empty"] = list(made(torch.zeros(0, 4)))
        out[f"{name}_settings"] = [str(made.thresholds), str(made.labels)]
    made = d2.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    labels = torch.zeros(60, dtype=torch.int8)
    made.set_low_quality_matches_(labels, quality)
    out["low_quality"] = labels
    out["errors"] = [
        error_of(lambda bad=bad: d2.Matcher(*bad)) for bad in [([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 2]), ([0.5], [0])]
    ]
    return out


@case("Boxes", what="IoU, intersection and IoA of all pairs", rtol=1e-6, atol=1e-6)
def overlaps():
    structures = d2_module("structures.boxes")
    first, second = (d2.Boxes(random_boxes(n, 40, 50, seed)) for n, seed in ((6, 1), (9, 2)))
    return {
        "iou": structures.pairwise_iou(first, second),
        "none": structures.pairwise_iou(first[:0], second),
        "intersection": structures.pairwise_intersection(first, second),
        "ioa": structures.pairwise_ioa(first, second),
    }


@case("RPN", "ROIHeads", what="random sampling of labels after a seed: the same indices")
def sampling():
    labels = torch.randint(-1, 4, (200,), generator=generator(4))
    torch.manual_seed(11)
    subsample = d2_module("modeling.sampling").subsample_labels
    return {
        "usual": list(subsample(labels, 40, 0.25, 0)),
        "few": list(subsample(labels, 400, 0.5, 0)),
        "background_is_last": list(subsample(labels, 64, 0.25, 3)),
    }
