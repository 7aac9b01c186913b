"""Layers and the feature pyramid."""

from __future__ import annotations

from itertools import pairwise

import torch
from d2_access import d2_module
from fidelity.harness import case, error_of, fill, generator, gradient_norms
from torch import nn

from elsa_det import d2

NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


@case(
    "get_norm",
    what="kind, parameters, output in training and inference, statistics and gradients of eight norms; callables; none",
    rtol=1e-5,
    atol=1e-5,
)
def norms():
    out: dict = {}
    for name in NORMS:
        made = fill(d2.get_norm(name, 32), 0.5)
        x = (torch.randn(2, 32, 3, 4, generator=generator(3)) + 1).requires_grad_()
        entry: dict = {"kind": type(made).__name__, "state": {k: list(v.shape) for k, v in made.state_dict().items()}}
        if name not in ("SyncBN", "nnSyncBN"):  # torch's own, on GPUs only
            trained = made.train()(x)
            (trained * torch.linspace(-1, 1, trained.numel()).view_as(trained)).sum().backward()
            entry |= {
                "trained": trained[:, ::5],
                "tested": made.eval()(x)[:, ::5],
                "gradient": x.grad[:, ::5],
                "gradients": gradient_norms(made),
                "statistics": {k: v[::5].float() for k, v in made.named_buffers() if v.dim()},
            }
        out[name] = entry
    out["none"] = [d2.get_norm("", 3) is None, d2.get_norm(None, 3) is None]
    out["callable"] = type(d2.get_norm(lambda channels: nn.Identity(), 3)).__name__
    out["unknown"] = error_of(lambda: d2.get_norm("XN", 3))
    frozen = d2_module("layers").FrozenBatchNorm2d
    plain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2)))
    converted = frozen.convert_frozen_batchnorm(plain)
    out["frozen"] = [type(layer).__name__ for layer in converted.modules()]
    out["eps"] = [frozen(2).eps, frozen(2, eps=0.1).eps]
    return out


@case("Conv2d", what="with norm and activation, names of parameters, no images, gradients", rtol=1e-5, atol=1e-5)
def convolutions():
    out: dict = {}
    x = torch.randn(2, 3, 5, 6, generator=generator(1))
    for name, options in {
        "plain": {},
        "norm": {"norm": nn.BatchNorm2d(4), "bias": False},
        "both": {"norm": nn.GroupNorm(2, 4), "activation": torch.relu, "stride": 2, "padding": 1},
    }.items():
        made = fill(d2.Conv2d(3, 4, 3, **options), 0.5)
        result = made(x)
        result.square().sum().backward()
        out[name] = {"output": result, "state": list(made.state_dict()), "gradients": gradient_norms(made)}
        if name != "norm":
            out[name]["empty"] = list(made(x[:0]).shape)
    out["base"] = isinstance(made, nn.Conv2d)
    block = d2_module("layers").CNNBlockBase(1, 2, 3)
    block.inner = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    frozen = block.freeze()
    kinds = [type(layer).__name__ for layer in frozen.modules()]
    out["frozen"] = [frozen is block, kinds, [p.requires_grad for p in frozen.parameters()], block.stride]
    return out


@case("ShapeSpec", what="fields, defaults, equality, text")
def shapes():
    made = d2.ShapeSpec(channels=3, stride=4)
    fields = [made.channels, made.height is None, made.width is None, made.stride]
    return {
        "fields": fields,
        "empty": [value is None for value in (d2.ShapeSpec().channels, d2.ShapeSpec().stride)],
        "equal": [made == d2.ShapeSpec(3, None, None, 4), made == d2.ShapeSpec(3)],
        "text": repr(made),
    }


class Pyramid(d2.Backbone):
    """Strided convolutions; the last three of them are the output."""

    def __init__(self, channels: tuple[int, ...] = (3, 4, 4, 6, 8, 8)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in pairwise(channels))
        self._out_features = ["res3", "res4", "res5"]
        self._out_feature_channels = dict(zip(self._out_features, channels[-3:]))
        self._out_feature_strides = {"res3": 8, "res4": 16, "res5": 32}

    def forward(self, x):
        outputs = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            outputs.append(x)
        return dict(zip(self._out_features, outputs[-3:]))


@case("Backbone", what="output shapes from the attributes, divisibility, padding, what has to be overridden")
def backbones():
    made = Pyramid()
    return {
        "shapes": {name: str(shape) for name, shape in made.output_shape().items()},
        "divisibility": made.size_divisibility,
        "padding": made.padding_constraints,
        "abstract": error_of(d2.Backbone),
        "registered": type(d2.BACKBONE_REGISTRY).__name__,
    }


@case(
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "Backbone",
    what="maps of all levels, gradients, names, shapes, first weights; sum, average, norms, top blocks; errors",
    rtol=1e-5,
    atol=1e-5,
)
def pyramids():
    out: dict = {}
    for name, options in {
        "plain": {},
        "pool": {"top_block": d2.LastLevelMaxPool(), "norm": "GN"},
        "convs": {"top_block": d2.LastLevelP6P7(8, 32), "fuse_type": "avg"},
        "convs_of_p5": {"top_block": d2.LastLevelP6P7(32, 32, in_feature="p5"), "square_pad": 128},
    }.items():
        made = fill(d2.FPN(Pyramid(), ["res3", "res4", "res5"], 32, **options), 0.3).double()
        maps = made(torch.randn(1, 3, 64, 96, generator=generator(2)).double())
        sum((value * value).sum() for value in maps.values()).backward()
        out[name] = {
            "maps": {level: value[0, ::7] for level, value in maps.items()},
            "gradients": gradient_norms(made),
            "state": {key: list(value.shape) for key, value in made.state_dict().items()},
            "shapes": {level: str(shape) for level, shape in made.output_shape().items()},
            "divisibility": made.size_divisibility,
            "padding": made.padding_constraints,
        }
    torch.manual_seed(4)
    made = d2.FPN(Pyramid(), ["res4", "res5"], 8, top_block=d2.LastLevelP6P7(8, 8))
    out["first_weights"] = {
        key: value.reshape(-1)[:3] for key, value in made.state_dict().items() if "backbone" not in key
    }
    top = d2.LastLevelP6P7(8, 8)
    out["blocks"] = [top.num_levels, top.in_feature, d2.LastLevelMaxPool().num_levels, d2.LastLevelMaxPool().in_feature]
    out["errors"] = [
        error_of(lambda: d2.FPN(Pyramid(), [], 8)),
        error_of(lambda: d2.FPN(Pyramid(), ["res3", "res5"], 8)),
        error_of(lambda: d2.FPN(Pyramid(), ["res5"], 8, fuse_type="max")),
    ]
    return out
