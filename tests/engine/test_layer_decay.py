"""Layers and learning rates of the layer-wise decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elsa_det import get_config
from elsa_det.d2 import LazyConfig, get_default_optimizer_params, instantiate
from elsa_det.engine.layer_decay import SwinLayerDecay
from elsa_det.errors import UserError
from elsa_det.modeling import ELSASwin, Swin

DEPTHS = (2, 2, 6, 2)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.bottom_up.patch_embed.proj.weight", 0),
        ("backbone.bottom_up.patch_embed.norm.bias", 0),
        ("backbone.bottom_up.layers.0.blocks.0.norm1.weight", 1),
        ("backbone.bottom_up.layers.0.blocks.1.attn.proj.weight", 2),
        ("backbone.bottom_up.layers.0.downsample.reduction.weight", 2),
        ("backbone.bottom_up.layers.1.blocks.0.mlp.fc1.bias", 3),
        ("backbone.bottom_up.layers.1.downsample.norm.weight", 4),
        ("backbone.bottom_up.layers.2.blocks.5.norm2.bias", 10),
        ("backbone.bottom_up.layers.3.blocks.1.attn.relative_position_bias_table", 12),
        ("backbone.bottom_up.norm0.weight", 13),
        ("backbone.fpn_lateral2.weight", 13),
        ("roi_heads.box_head.fc1.weight", 13),
        ("roi_heads.layers.0.blocks.0.weight", 13),
        ("backbone.layers.0.blocks.0.norm1.weight", 1),
    ],
)
def test_layer_of_a_parameter(name, layer):
    decay = SwinLayerDecay(0.8, DEPTHS)
    assert decay.num_layers == 14
    assert decay.layer_id(name) == layer
    assert decay(name) == pytest.approx(0.8 ** (13 - layer))


@pytest.mark.parametrize("kind", [ELSASwin, Swin])
def test_every_parameter_of_the_backbones(kind):
    backbone = nn.ModuleDict({"backbone": kind(embed_dim=12, depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4))})
    decay = SwinLayerDecay(0.5, (1, 1, 2, 1))
    names = [name for name, _ in backbone.named_parameters()]
    decay.check(names)
    assert {decay.layer_id(name) for name in names} == set(range(7))
    outside = {name.split(".")[1] for name in names if decay(name) == 1}
    assert outside == {"norm0", "norm1", "norm2", "norm3"}
    rates = {
        id(p): group["lr"]
        for group in get_default_optimizer_params(backbone, base_lr=0.1, lr_factor_func=decay)
        for p in group["params"]
    }
    for name, parameter in backbone.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 * 0.5 ** (6 - decay.layer_id(name))), name


def test_from_the_config_and_back(tmp_path):
    cfg = get_config("examples/layer_decay")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    backbone = again.model.backbone.bottom_up
    backbone.embed_dim, backbone.depths, backbone.num_heads = 12, [1, 1, 1, 1], [1, 2, 3, 4]
    again.model.backbone.out_channels = 16
    model = instantiate(again.model)
    again.optimizer.params.model = model
    optimizer = instantiate(again.optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.backbone.bottom_up.patch_embed.proj.weight)] == pytest.approx(1e-4 * 0.8**5)
    assert rates[id(model.backbone.bottom_up.layers[3].blocks[0].norm1.weight)] == pytest.approx(1e-4 * 0.8)
    assert decays[id(model.backbone.bottom_up.layers[3].blocks[0].norm1.weight)] == 0.0
    assert rates[id(model.roi_heads.box_predictor.cls_score.weight)] == 1e-4
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, DEPTHS), r"must be in \(0, 1\], got 0"),
        ((1.2, DEPTHS), r"must be in \(0, 1\], got 1.2"),
        (("high", DEPTHS), "got 'high'"),
        ((0.8, ()), r"depths=\[\]"),
        ((0.8, (2, 0)), r"depths=\[2, 0\]"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SwinLayerDecay(*arguments)


def test_a_backbone_of_other_stages_is_refused():
    decay = SwinLayerDecay(0.8, (1, 2))
    with pytest.raises(UserError, match="no parameter of the model is one of a stage's block"):
        decay.check(["backbone.res2.0.conv1.weight"])
    names = [f"backbone.layers.{s}.blocks.{b}.norm1.weight" for s, n in enumerate((1, 3)) for b in range(n)]
    with pytest.raises(UserError, match=r"depths=\[1, 2\], the model's stages have \[1, 3\] blocks"):
        decay.check(names)
    with pytest.raises(UserError, match=r"no place for backbone.layers.1.blocks.2"):
        decay("backbone.layers.1.blocks.2.norm1.weight")
