"""The pyramid: values by hand, names, state dict, and the order in which weights are drawn."""

from __future__ import annotations

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2


class GivenFeatures(d2.Backbone):
    """Returns the features it was made with, whatever the image."""

    def __init__(self, features: dict[str, torch.Tensor], strides: dict[str, int]):
        super().__init__()
        self.features = features
        self._out_features = list(features)
        self._out_feature_channels = {name: value.shape[1] for name, value in features.items()}
        self._out_feature_strides = strides

    def forward(self, x):
        return self.features


def two_levels(fuse_type: str = "sum", norm: str = "", top_block: nn.Module | None = None, square_pad: int = 0):
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.tensor([[10.0, 20.0], [30.0, 40.0]]).view(1, 1, 2, 2)
    backbone = GivenFeatures({"res4": fine, "res5": coarse}, {"res4": 16, "res5": 32})
    return d2.FPN(
        backbone, ["res4", "res5"], 1, norm=norm, top_block=top_block, fuse_type=fuse_type, square_pad=square_pad
    )


def pass_through(fpn: d2.FPN) -> None:
    """Weights that leave a single channel as it is."""
    with torch.no_grad():
        for name, parameter in fpn.named_parameters():
            parameter.zero_()
            if name.endswith("weight"):
                parameter[0, 0, parameter.shape[2] // 2, parameter.shape[3] // 2] = 1


@pytest.mark.parametrize(("fuse_type", "factor"), [("sum", 1.0), ("avg", 0.5)])
def test_coarse_features_are_added_to_fine_ones(fuse_type, factor):
    fpn = two_levels(fuse_type, top_block=d2.LastLevelMaxPool())
    pass_through(fpn)
    out = fpn(torch.zeros(1, 3, 64, 64))
    assert list(out) == ["p4", "p5", "p6"]
    assert out["p5"].flatten().tolist() == [10, 20, 30, 40]
    expected = [[10, 11, 22, 23], [14, 15, 26, 27], [38, 39, 50, 51], [42, 43, 54, 55]]
    torch.testing.assert_close(out["p4"][0, 0], torch.tensor(expected) * factor)
    assert out["p6"].flatten().tolist() == [10]


def test_shapes_and_padding():
    fpn = two_levels(top_block=d2.LastLevelMaxPool(), square_pad=640)
    shapes = {name: (shape.channels, shape.stride) for name, shape in fpn.output_shape().items()}
    assert shapes == {"p4": (1, 16), "p5": (1, 32), "p6": (1, 64)}
    assert fpn.size_divisibility == 32
    assert fpn.padding_constraints == {"square_size": 640}
    bare = GivenFeatures({}, {})
    assert (bare.size_divisibility, bare.padding_constraints, bare.output_shape()) == (0, {}, {})


def test_state_dict_keys():
    names = [
        f"fpn_{kind}{level}.{part}" for level in (4, 5) for kind in ("lateral", "output") for part in ("weight", "bias")
    ]
    assert list(two_levels().state_dict()) == names
    with_norm = {name for name in two_levels(norm="LN").state_dict() if "4" in name}
    assert with_norm == {
        f"fpn_{kind}4.{part}" for kind in ("lateral", "output") for part in ("weight", "norm.weight", "norm.bias")
    }


def test_weights_are_drawn_level_by_level():
    torch.manual_seed(0)
    fpn = two_levels()
    torch.manual_seed(0)
    for level in (4, 5):
        lateral, output = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3)
        for conv, name in ((lateral, f"fpn_lateral{level}"), (output, f"fpn_output{level}")):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert torch.equal(fpn.get_submodule(name).weight, conv.weight)
            assert torch.count_nonzero(fpn.get_submodule(name).bias) == 0


def test_last_level_p6p7_may_start_from_the_backbone():
    block = d2_module("modeling.backbone.fpn").LastLevelP6P7(1, 1)
    fpn = two_levels(top_block=block)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(1.0)
    out = fpn(torch.zeros(1, 3, 64, 64))
    assert list(out) == ["p4", "p5", "p6", "p7"]
    assert out["p6"].flatten().tolist() == [101]  # 10 + 20 + 30 + 40 of res5, and the bias
    assert out["p7"].flatten().tolist() == [102]


@pytest.mark.parametrize(
    "change",
    [{"in_features": []}, {"in_features": ["res4", "res3"]}, {"fuse_type": "max"}, {"bottom_up": nn.Identity()}],
)
def test_bad_arguments(change):
    feature = torch.zeros(1, 1, 2, 2)
    backbone = GivenFeatures({"res3": feature, "res4": feature}, {"res3": 8, "res4": 16})
    arguments = {"bottom_up": backbone, "in_features": ["res3", "res4"], "out_channels": 1, **change}
    with pytest.raises((AssertionError, ValueError, TypeError)):
        d2.FPN(**arguments)


def test_registry_names():
    assert d2.BACKBONE_REGISTRY._name == "BACKBONE"
    assert d2_module("modeling").META_ARCH_REGISTRY.get("GeneralizedRCNN") is d2.GeneralizedRCNN
    assert d2_module("modeling").ROI_HEADS_REGISTRY.get("StandardROIHeads") is d2.StandardROIHeads
    assert d2_module("modeling.proposal_generator").PROPOSAL_GENERATOR_REGISTRY.get("RPN") is d2.RPN
