"""Published UPerNets: the forms they come in, an account of every key, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from segmentor_cases import TINY, segmentor_config

from elsa_det.checkpoint import CheckpointError, convert_segmentor_state_dict, load_initial_weights
from elsa_det.checkpoint.segmentor import convert_segmentor
from elsa_det.d2 import instantiate
from elsa_det.modeling import ELSASwin, Swin

CLASSES, CHANNELS = 5, 8
SWIN = {key: value for key, value in TINY.items() if key != "group_width"}
HEADS = torch.load(Path(__file__).parents[1] / "golden" / "upernet_heads.pt", weights_only=True)["state_dict"]


def segmentor(kind=ELSASwin, classes=CLASSES, seed=0):
    """A segmentor whose every number is its own, running statistics included."""
    cfg = segmentor_config("upernet", kind, **(TINY if kind is ELSASwin else SWIN)).model
    cfg.decode_head.num_classes, cfg.decode_head.channels, cfg.auxiliary_head.channels = classes, CHANNELS, 4
    model = instantiate(cfg)
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator))
    return model


# The published names, written down apart from the code's own table.
PUBLISHED_MODULES = {
    "decode_head.predictor": "decode_head.conv_seg",
    **{f"decode_head.pooling.{i}": f"decode_head.psp_modules.{i}.1" for i in range(4)},
    "decode_head.pooling_fusion": "decode_head.bottleneck",
    **{f"decode_head.lateral_convs.{i}": f"decode_head.lateral_convs.{i}" for i in range(3)},
    **{f"decode_head.output_convs.{i}": f"decode_head.fpn_convs.{i}" for i in range(3)},
    "decode_head.fusion": "decode_head.fpn_bottleneck",
    "auxiliary_head.predictor": "auxiliary_head.conv_seg",
    "auxiliary_head.convs.0": "auxiliary_head.convs.0",
}


def published_head_name(key):
    module, _, leaf = key.rpartition(".")
    norm = module.endswith(".norm")
    module = PUBLISHED_MODULES[module.removesuffix(".norm")]
    if module.endswith("conv_seg"):
        return f"{module}.{leaf}"
    return f"{module}.{'bn' if norm else 'conv'}.{leaf}"


def published(model):
    """The weights of a segmentor on Swin under mmsegmentation's and Microsoft's names."""
    return {
        key if key.startswith("backbone.") else published_head_name(key): value.clone()
        for key, value in model.state_dict().items()
    }


def in_mmsegmentations_own_swin(weights):
    """The same weights as mmsegmentation's own Swin (0.18 and later, 1.x) holds them."""
    result = {}
    for key, value in weights.items():
        if ".downsample." in key:  # its patch merging: the four neighbours of one channel after the other
            by_neighbour = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
            value = by_neighbour.transpose(-1, -2).flatten(-2)
        for ours, theirs in (
            ("backbone.layers.", "backbone.stages."),
            ("patch_embed.proj.", "patch_embed.projection."),
            (".attn.", ".attn.w_msa."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            key = key.replace(ours, theirs)
        result[key] = value
    result["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(49, 49).long()
    return result


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(got[key], wanted[key])] == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"state_dict": sd, "meta": {"CLASSES": ["wall"]}},
        lambda sd: {"state_dict": {f"module.{k}": v for k, v in sd.items()}},
        in_mmsegmentations_own_swin,
        lambda sd: {**sd, "data_preprocessor.mean": torch.zeros(3, 1, 1)},
        lambda sd: {**sd, "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49).long()},
    ],
    ids=["bare", "state_dict", "module.", "mmseg's own Swin", "data_preprocessor", "index"],
)
def test_every_published_form_bit_for_bit(wrap):
    model = segmentor(Swin)
    assert_same(convert_segmentor_state_dict(wrap(published(model))), model.state_dict())


def test_every_key_is_accounted_for():
    source = in_mmsegmentations_own_swin(published(segmentor(Swin)))
    conversion = convert_segmentor(source)
    assert set(conversion.renamed) | set(conversion.left_over) == set(source)
    assert set(conversion.renamed.values()) == set(conversion.state_dict) == set(segmentor(Swin).state_dict())
    assert conversion.left_over == {
        "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": "an index that elsa_det computes"
    }
    assert conversion.renamed["decode_head.psp_modules.2.1.bn.bias"] == "decode_head.pooling.2.norm.bias"
    assert conversion.kind.startswith("UPerNet, 5 classes, 8 channels, on Swin of no published size (embed_dim 8")


def test_heads_alone():
    conversion = convert_segmentor(HEADS)
    assert len(conversion.state_dict) == len(HEADS)
    assert conversion.left_over == {}
    assert conversion.kind == "UPerNet, 7 classes, 16 channels, without backbone"
    assert torch.equal(
        conversion.state_dict["decode_head.pooling_fusion.weight"], HEADS["decode_head.bottleneck.conv.weight"]
    )


@pytest.mark.parametrize("kind", [ELSASwin, Swin])
def test_own_names_pass_through(kind):
    weights = segmentor(kind).state_dict()
    assert_same(convert_segmentor_state_dict(weights), weights)


def test_without_auxiliary_head():
    source = {key: value for key, value in published(segmentor(Swin)).items() if not key.startswith("auxiliary_head.")}
    got = convert_segmentor_state_dict(source)
    assert not any(key.startswith("auxiliary_head.") for key in got)
    assert len(got) == len(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decode_head.bottleneck.bn.weight": None},
            r"looks like UPerNet, 5 classes.*not one whole\s+1 missing: .*pooling_fusion.norm.weight",
        ),
        ({"decode_head.lateral_convs.2.*": None}, r"has no decode_head.lateral_convs.2.weight: it is incomplete"),
        (
            {"decode_head.psp_modules.3.*": None},
            r"not one whole.*pooling_fusion.weight \(8, 96, 3, 3\) instead of \(8, 88, 3, 3\)",
        ),
        ({"decode_head.fpn_convs.0.*": None}, r"missing: decode_head.output_convs.0.weight"),
        ({"backbone.layers.3.*": None}, r"backbone|not one whole"),
        ({"backbone.norm2.weight": None}, r"1 missing: backbone.norm2.weight"),
        (
            {"decode_head.dropout.scale": torch.ones(1)},
            r"1 weights have no counterpart.*decode_head.dropout.scale.*another arch",
        ),
        ({"neck.lateral_convs.0.conv.weight": torch.ones(1)}, r"neck.lateral_convs.0.conv.weight"),
        ({"decode_head.psp_modules.*": None, "decode_head.lateral_convs.*": None}, r"not that of a UPerNet"),
        (
            {"auxiliary_head.conv_seg.weight": torch.zeros(9, 4, 1, 1)},
            r"numbers of classes are decode_head 5, auxiliary_head 9",
        ),
        (
            {"auxiliary_head.convs.0.conv.weight": torch.zeros(4, 24, 3, 3)},
            r"auxiliary_head takes 24 channels.*8, 16, 32, 64",
        ),
        (
            {"decode_head.lateral_convs.1.conv.weight": torch.zeros(8, 17, 1, 1)},
            r"different models: decode_head was made for 17 channels of p1, the backbone gives 16",
        ),
        (
            {"decode_head.fpn_bottleneck.conv.weight": torch.full((8, 32, 3, 3), float("nan"))},
            r"NaN or infinite values in 1 of \d+ tensors: decode_head.fpn_bottleneck.conv.weight \(2,304 of 2,304\)",
        ),
        ({"backbone.patch_embed.proj.bias": torch.full((8,), float("inf"))}, r"NaN or infinite.*patch_embed.proj.bias"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_refused(change, message):
    source = published(segmentor(Swin))
    for pattern, value in change.items():
        if value is None:
            keys = [key for key in source if re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key)]
            assert keys
            for key in keys:
                del source[key]
        else:
            source[pattern] = value
    with pytest.raises(CheckpointError, match=re.compile(message, re.DOTALL)):
        convert_segmentor_state_dict(source)


def test_not_a_segmentor():
    with pytest.raises(CheckpointError, match=r"not the weights of a segmentor, but those of a detector"):
        convert_segmentor_state_dict({"rpn_head.rpn_conv.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"no decode_head.\* among the keys, which start with patch_embed"):
        convert_segmentor_state_dict({"patch_embed.proj.weight": torch.ones(1)})
    source = published(segmentor(Swin))
    resnet = {k: v for k, v in source.items() if not k.startswith("backbone.")} | {"backbone.layer1.0.w": torch.ones(1)}
    with pytest.raises(CheckpointError, match="not the weights of an ELSA-Swin or Swin"):
        convert_segmentor_state_dict(resnet)


def test_published_file_starts_a_training(tmp_path):
    theirs = segmentor(Swin)
    torch.save({"state_dict": published(theirs), "meta": {"epoch": 1}}, tmp_path / "upernet.pth")
    ours = segmentor(Swin, seed=1)
    report = load_initial_weights(ours, str(tmp_path / "upernet.pth"))
    assert_same(ours.state_dict(), theirs.state_dict())
    assert len(report.matched) == len(theirs.state_dict())
    assert report.initialised == report.left_over == report.mismatched == {}
    assert report.kind.startswith("UPerNet, 5 classes")


def test_published_file_with_other_classes(tmp_path):
    theirs = segmentor(Swin)
    torch.save(published(theirs), tmp_path / "upernet.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the model.*init_allow_mismatch=True"):
        load_initial_weights(segmentor(Swin, classes=3), str(tmp_path / "upernet.pth"))
    ours = segmentor(Swin, classes=3, seed=1)
    before = ours.decode_head.predictor.weight.clone()
    report = load_initial_weights(ours, str(tmp_path / "upernet.pth"), allow_mismatch=True)
    assert set(report.mismatched) == {
        f"{head}.predictor.{leaf}" for head in ("decode_head", "auxiliary_head") for leaf in ("weight", "bias")
    }
    assert torch.equal(ours.decode_head.predictor.weight, before)
    assert torch.equal(ours.decode_head.fusion.weight, theirs.decode_head.fusion.weight)


def test_published_file_of_another_backbone(tmp_path):
    torch.save(published(segmentor(Swin)), tmp_path / "upernet.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the model"):
        load_initial_weights(segmentor(ELSASwin), str(tmp_path / "upernet.pth"))


def test_only_the_backbone_goes_into_a_backbone(tmp_path):
    theirs = segmentor(Swin)
    torch.save(published(theirs), tmp_path / "upernet.pth")
    backbone = Swin(**SWIN)
    report = load_initial_weights(backbone, str(tmp_path / "upernet.pth"))
    assert_same(backbone.state_dict(), theirs.backbone.state_dict())
    assert report.left_over["decode_head.conv_seg.weight"] == "not of the backbone"
