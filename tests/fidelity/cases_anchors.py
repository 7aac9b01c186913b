"""Anchors."""

from __future__ import annotations

import torch
from fidelity.harness import case, error_of

from elsa_det import d2


@case(
    "DefaultAnchorGenerator",
    what="cell anchors, anchors of two levels, counts, state dict, errors",
    rtol=1e-6,
    atol=1e-5,
)
def anchors():
    out = {}
    settings = {
        "usual": dict(sizes=[[32], [64]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8]),
        "per_level": dict(sizes=[[16, 20.5], [40]], aspect_ratios=[[1.0], [0.3, 3.0]], strides=[8, 16], offset=0.0),
        "shared": dict(sizes=[[24, 48]], aspect_ratios=[[0.5, 1.0]], strides=[4, 32], offset=0.25),
        "flat": dict(sizes=[32.0, 64.0], aspect_ratios=[1.0, 2.0], strides=[16]),
    }
    features = [torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 2, 1)]
    for name, setting in settings.items():
        made = d2.DefaultAnchorGenerator(**setting)
        maps = features[: len(setting["strides"])]
        out[name] = {
            "anchors": [boxes.tensor for boxes in made(maps)],
            "cells": list(made.cell_anchors),
            "numbers": [list(made.num_anchors), list(made.num_cell_anchors), made.box_dim],
            "state": sorted(made.state_dict()),
        }
    out["cell"] = d2.DefaultAnchorGenerator(**settings["usual"]).generate_cell_anchors()
    out["bad_offset"] = error_of(lambda: d2.DefaultAnchorGenerator(**settings["usual"] | {"offset": 1.0}))
    return out
