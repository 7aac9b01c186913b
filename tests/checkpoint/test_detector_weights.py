"""Published detectors: what their weights become, what is said of those that cannot be used, and partial starts."""

from __future__ import annotations

import logging
import pickle
import sys
import types

import numpy as np
import published_detectors as published
import pytest
import torch
from torch import nn

from elsa_det.checkpoint import (
    CheckpointError,
    convert_detector,
    convert_detector_state_dict,
    convert_file,
    convert_published,
    load_initial_weights,
    read_checkpoint,
    take_parts,
    to_mmdetection_state_dict,
    unwrap_state_dict,
)
from elsa_det.checkpoint.backbone import convert_backbone_state_dict
from elsa_det.d2 import instantiate
from elsa_det.layers.patch import PatchMerging
from elsa_det.modeling import Swin


def model(*overrides):
    return instantiate(published.config(*overrides).model)


NAMES = {
    "backbone.patch_embed.proj.weight": "backbone.bottom_up.patch_embed.proj.weight",
    "backbone.layers.0.blocks.0.attn.ghost_head": "backbone.bottom_up.layers.0.blocks.0.attn.ghost_head",
    "backbone.norm3.bias": "backbone.bottom_up.norm3.bias",
    "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral2.weight",
    "neck.lateral_convs.3.conv.bias": "backbone.fpn_lateral5.bias",
    "neck.fpn_convs.2.conv.weight": "backbone.fpn_output4.weight",
    "rpn_head.rpn_conv.weight": "proposal_generator.rpn_head.conv.weight",
    "rpn_head.rpn_cls.bias": "proposal_generator.rpn_head.objectness_logits.bias",
    "rpn_head.rpn_reg.weight": "proposal_generator.rpn_head.anchor_deltas.weight",
}
MASK_NAMES = {
    "roi_head.bbox_head.shared_fcs.0.weight": "roi_heads.box_head.fc1.weight",
    "roi_head.bbox_head.shared_fcs.1.bias": "roi_heads.box_head.fc2.bias",
    "roi_head.bbox_head.fc_cls.weight": "roi_heads.box_predictor.cls_score.weight",
    "roi_head.bbox_head.fc_reg.bias": "roi_heads.box_predictor.bbox_pred.bias",
    "roi_head.mask_head.convs.0.conv.weight": "roi_heads.mask_head.mask_fcn1.weight",
    "roi_head.mask_head.convs.3.conv.bias": "roi_heads.mask_head.mask_fcn4.bias",
    "roi_head.mask_head.upsample.weight": "roi_heads.mask_head.deconv.weight",
    "roi_head.mask_head.conv_logits.bias": "roi_heads.mask_head.predictor.bias",
}
CASCADE_NAMES = {
    "roi_head.bbox_head.0.shared_convs.0.conv.weight": "roi_heads.box_head.0.conv1.weight",
    "roi_head.bbox_head.2.shared_convs.3.bn.running_var": "roi_heads.box_head.2.conv4.norm.running_var",
    "roi_head.bbox_head.1.shared_convs.1.bn.num_batches_tracked": "roi_heads.box_head.1.conv2.norm.num_batches_tracked",
    "roi_head.bbox_head.1.shared_fcs.0.weight": "roi_heads.box_head.1.fc1.weight",
    "roi_head.bbox_head.2.fc_cls.bias": "roi_heads.box_predictor.2.cls_score.bias",
    "roi_head.bbox_head.0.fc_reg.weight": "roi_heads.box_predictor.0.bbox_pred.weight",
    "roi_head.mask_head.1.convs.2.conv.weight": "roi_heads.mask_head.1.mask_fcn3.weight",
    "roi_head.mask_head.2.upsample.bias": "roi_heads.mask_head.2.deconv.bias",
    "roi_head.mask_head.0.conv_logits.weight": "roi_heads.mask_head.0.predictor.weight",
}


@pytest.mark.parametrize(
    ("make", "names"), [(published.mask_rcnn, MASK_NAMES), (published.cascade, CASCADE_NAMES)], ids=["mask", "cascade"]
)
def test_every_weight_has_its_name(make, names):
    source = make()
    conversion = convert_detector({"state_dict": source, "meta": {"mmdet_version": "2.11.0"}})
    for theirs, ours in {**NAMES, **names}.items():
        assert conversion.renamed[theirs] == ours
        assert torch.equal(conversion.state_dict[ours], source[theirs])
    assert set(conversion.renamed) | set(conversion.left_over) == set(source)
    assert set(conversion.renamed.values()) == set(conversion.state_dict)
    assert all(key.endswith("attn.relative_id") for key in conversion.left_over)


def test_weights_are_those_of_the_model_of_the_config():
    ours = convert_detector_state_dict(published.mask_rcnn())
    own = model().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in own.items()}


@pytest.mark.parametrize("make", [published.mask_rcnn, published.cascade], ids=["mask", "cascade"])
def test_there_and_back(make):
    source = make()
    conversion = convert_detector(source)
    back = to_mmdetection_state_dict(conversion.state_dict)
    assert set(back) == set(source) - set(conversion.left_over)
    for key, value in back.items():
        assert torch.equal(value, source[key]), key
        assert value.dtype == source[key].dtype


def test_our_own_names_pass_through():
    once = convert_detector_state_dict(published.cascade())
    twice = convert_detector_state_dict({"model": once})
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (published.mask_rcnn(), "Mask R-CNN, "),
        (published.cascade(), "Cascade Mask R-CNN, "),
        (published.cascade(masks=False), "Cascade R-CNN, "),
        ({k: v for k, v in published.mask_rcnn().items() if "mask_head" not in k}, "Faster R-CNN, "),
    ],
    ids=["mask", "cascade", "cascade without masks", "faster"],
)
def test_forms(weights, kind):
    told = convert_detector(weights).kind
    assert told.startswith(kind)
    assert "on ELSA-Swin" in told


def test_names_of_mmdetection_3_and_of_averaged_weights():
    weights = published.mask_rcnn()
    plain = convert_detector_state_dict(weights)
    weights["data_preprocessor.mean"] = torch.zeros(3, 1, 1)
    weights["ema_rpn_head_rpn_conv_weight"] = weights["rpn_head.rpn_conv.weight"] + 1
    conversion = convert_detector({"state_dict": {f"module.{key}": value for key, value in weights.items()}})
    assert all(torch.equal(conversion.state_dict[key], plain[key]) for key in plain)
    assert conversion.left_over["data_preprocessor.mean"].startswith("pixel statistics")
    assert conversion.left_over["ema_rpn_head_rpn_conv_weight"].startswith("the weights before averaging")


def test_rpn_with_several_convolutions():
    weights = published.mask_rcnn()
    for name in ("weight", "bias"):
        value = weights.pop(f"rpn_head.rpn_conv.{name}")
        second = torch.randn(len(value), len(value), 3, 3) if name == "weight" else value + 1
        weights |= {f"rpn_head.rpn_conv.0.conv.{name}": value, f"rpn_head.rpn_conv.1.conv.{name}": second}
    ours = convert_detector_state_dict(weights)
    assert torch.equal(ours["proposal_generator.rpn_head.conv.conv1.bias"], weights["rpn_head.rpn_conv.1.conv.bias"])


def swin_detector():
    """A detector on mmdetection's own Swin: our Swin's weights in its names, patches merged in nn.Unfold's order."""
    torch.manual_seed(0)
    weights = published.mask_rcnn()
    widths = [weights[f"neck.lateral_convs.{n}.conv.weight"].shape[1] for n in range(4)]
    swin = Swin(embed_dim=widths[0], depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 6))
    weights = {key: value for key, value in weights.items() if not key.startswith("backbone.")}
    changes = {
        "layers.": "stages.",
        "patch_embed.proj.": "patch_embed.projection.",
        ".attn.": ".attn.w_msa.",
        ".mlp.fc1.": ".ffn.layers.0.0.",
        ".mlp.fc2.": ".ffn.layers.1.",
    }
    for key, value in swin.state_dict().items():
        if ".downsample." in key:  # [row and column parity, channel] -> [channel, row-major neighbour]
            value = value.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2).flatten(-3)
        for ours, theirs in changes.items():
            key = key.replace(ours, theirs)
        weights[f"backbone.{key}"] = value
    weights["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(49, 49).long()
    return weights, swin


def test_mmdetections_swin():
    weights, swin = swin_detector()
    conversion = convert_detector(weights)
    for key, value in swin.state_dict().items():
        assert torch.equal(conversion.state_dict[f"backbone.bottom_up.{key}"], value), key
    assert list(conversion.left_over.values()) == ["an index that elsa_det computes"]
    assert "on Swin" in conversion.kind


def test_patch_merging_of_mmdetections_swin():
    """The same map from nn.Unfold with its weights as from ours with the converted ones."""
    torch.manual_seed(0)
    dim, image = 6, torch.randn(2, 6, 8, 10)
    norm, reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    unfolded = nn.functional.unfold(image, 2, stride=2).transpose(1, 2)
    theirs = reduction(norm(unfolded)).unflatten(1, (4, 5))

    names = {
        "patch_embed.projection.weight": torch.zeros(dim, 3, 4, 4),
        "stages.0.blocks.0.norm1.weight": torch.ones(dim),
        "stages.0.downsample.norm.weight": norm.weight.detach(),
        "stages.0.downsample.norm.bias": norm.bias.detach(),
        "stages.0.downsample.reduction.weight": reduction.weight.detach(),
        "stages.1.blocks.0.norm1.weight": torch.ones(2 * dim),
    }
    converted = convert_backbone_state_dict(names)
    prefix = "layers.0.downsample."
    merging = PatchMerging(dim)
    merging.load_state_dict({k.removeprefix(prefix): v for k, v in converted.items() if k.startswith(prefix)})
    torch.testing.assert_close(merging(image.permute(0, 2, 3, 1)), theirs, rtol=0, atol=1e-5)


def without(weights, *starts):
    return {key: value for key, value in weights.items() if not key.startswith(starts)}


def renamed(weights, old, new):
    return {key.replace(old, new): value for key, value in weights.items()}


def changed(weights, key, value):
    assert key in weights
    return {**weights, key: value}


def resnet():
    weights = without(published.mask_rcnn(), "backbone.")
    return {**weights, "backbone.conv1.weight": torch.zeros(64, 3, 7, 7), "backbone.bn1.bias": torch.zeros(64)}


def other_group_width():
    """A stage of a model with twice the group width."""
    weights = published.mask_rcnn()
    key = "backbone.layers.1.blocks.0.attn.attn.0.weight"
    return changed(weights, key, torch.cat([weights[key]] * 2, dim=1))


def one_class_more(stage):
    weights = published.cascade()
    for name in ("weight", "bias"):
        key = f"roi_head.bbox_head.{stage}.fc_cls.{name}"
        weights[key] = torch.cat([weights[key], weights[key][:1]])
    return weights


def with_background(name):
    """Rows for the background, too, as mmdetection 1.x has them."""
    weights = published.mask_rcnn()
    for kind in ("weight", "bias"):
        key = f"roi_head.{name}.{kind}"
        rows = 4 if name.endswith("fc_reg") else 1
        weights[key] = torch.cat([weights[key], weights[key][:rows]])
    return weights


REFUSED = {
    "another backbone": (resnet, r"neither an ELSA-Swin nor a Swin.*backbone.conv1.weight.*--parts"),
    "one stage": (
        lambda: {"bbox_head.retina_cls.weight": torch.zeros(9)},
        r"not .* of a two-stage detector.*retina_cls",
    ),
    "more heads": (
        lambda: {**published.cascade(), "roi_head.semantic_head.conv_logits.weight": torch.zeros(2)},
        r"1 weights have no counterpart.*roi_head.semantic_head.conv_logits.weight.*another architecture",
    ),
    "six levels": (
        lambda: {**published.mask_rcnn(), "neck.fpn_convs.4.conv.weight": torch.zeros(2)},
        r"not one whole\n  1 unexpected: backbone.fpn_output6.weight",
    ),
    "stage missing": (
        lambda: without(published.cascade(), "roi_head.bbox_head.1.", "roi_head.mask_head.1."),
        r"not of one whole cascade of stages 0, 1, 2. .*box_head: 0, 2; box_predictor: 0, 2; mask_head: 0, 2",
    ),
    "last stage missing": (lambda: published.cascade(stages=2), r"not of one whole cascade.*box_head: 0, 1;"),
    "stage without masks": (
        lambda: without(published.cascade(), "roi_head.mask_head.2."),
        r"not of one whole cascade.*box_head: 0, 1, 2;.*mask_head: 0, 1$",
    ),
    "stage without a layer": (
        lambda: without(published.cascade(), "roi_head.bbox_head.1.shared_convs.2.bn.weight"),
        r"1 missing: roi_heads.box_head.1.conv3.norm.weight",
    ),
    "stages with other classes": (
        lambda: one_class_more(1),
        r"looks like Cascade Mask R-CNN.*\n.*roi_heads.box_predictor.1.bbox_pred.weight .* instead of",
    ),
    "single and cascade": (
        lambda: {**published.cascade(), **published.mask_rcnn()},
        r"not one whole\n  \d+ unexpected: roi_heads.box_",
    ),
    "other group width": (
        other_group_width,
        r"not one whole\n  1 of another shape: backbone.bottom_up.layers.1.blocks.0.attn.attn.0.weight",
    ),
    "block missing": (
        lambda: without(published.mask_rcnn(), "backbone.layers.2.blocks.0."),
        r"missing|has no",
    ),
    "no masks but a layer": (
        lambda: without(published.mask_rcnn(), "roi_head.mask_head.upsample", "roi_head.mask_head.convs"),
        r"has no roi_heads.mask_head.deconv.weight: it is incomplete",
    ),
    "no neck": (lambda: without(published.mask_rcnn(), "neck."), r"has no backbone.fpn_output2.weight"),
    "both names": (
        lambda: {**published.mask_rcnn(), "roi_heads.box_head.fc1.weight": torch.zeros(1)},
        r"both .* stand for roi_heads.box_head.fc1.weight: it is a mixture",
    ),
    "softmax RPN": (
        lambda: changed(
            published.mask_rcnn(),
            "rpn_head.rpn_cls.weight",
            published.mask_rcnn()["rpn_head.rpn_cls.weight"].repeat(2, 1, 1, 1),
        ),
        r"6 outputs for 3 anchors.*softmax",
    ),
    "1.x names": (
        lambda: renamed(published.mask_rcnn(), "roi_head.", ""),
        r"not in a roi_head.*mmdetection 1.x, whose background is class 0",
    ),
    "1.x version": (
        lambda: {"state_dict": published.mask_rcnn(), "meta": {"mmdet_version": "1.2.0"}},
        r"written by mmdetection 1.2.0",
    ),
    "1.x boxes": (lambda: with_background("bbox_head.fc_reg"), r"bbox_pred has boxes for the background.*1.x"),
    "1.x masks": (lambda: with_background("mask_head.conv_logits"), r"masks for \d classes.*1.x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        convert_detector_state_dict(make())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["roi_head.bbox_head.fc_cls.weight", "backbone.layers.1.blocks.0.mlp.fc1.weight"])
def test_weights_that_are_not_numbers(key, bad, tmp_path):
    weights = published.mask_rcnn()
    weights[key].view(-1)[3] = bad
    message = rf"NaN or infinite values in 1 of .* tensors: {key} \(1 of {weights[key].numel():,}\)"
    with pytest.raises(CheckpointError, match=message):
        convert_detector_state_dict(weights)
    torch.save({"state_dict": weights}, tmp_path / "bad.pth")
    detector = model()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_initial_weights(detector, str(tmp_path / "bad.pth"))
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_own_checkpoints_with_nan_are_refused(tmp_path):
    weights = convert_detector_state_dict(published.mask_rcnn())
    weights["roi_heads.box_head.fc1.bias"][0] = float("nan")
    torch.save({"model": weights}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"NaN.*roi_heads.box_head.fc1.bias"):
        load_initial_weights(model(), str(tmp_path / "bad.pth"))


def test_published_detector_as_initial_weights(tmp_path, caplog):
    source = published.mask_rcnn()
    torch.save({"state_dict": source, "meta": {"CLASSES": ("a",)}, "optimizer": {}}, tmp_path / "mask.pth")
    detector = model()
    with caplog.at_level(logging.INFO):
        report = load_initial_weights(detector, str(tmp_path / "mask.pth"))
    assert len(report.matched) == len(detector.state_dict())
    assert report.initialised == {}
    assert report.mismatched == {}
    assert set(report.left_over) == {key for key in source if key.endswith("relative_id")}
    assert "Mask R-CNN" in report.kind
    assert f"{len(report.matched)} tensors loaded" in caplog.text
    assert torch.equal(detector.roi_heads.box_head.fc1.weight, source["roi_head.bbox_head.shared_fcs.0.weight"])


def test_other_numbers_of_classes(tmp_path):
    torch.save({"state_dict": published.mask_rcnn()}, tmp_path / "mask.pth")
    classes = published.recorded()["config"]["roi_head"]["bbox_head"]["num_classes"]
    with pytest.raises(
        CheckpointError,
        match=rf"(?s)holds Mask R-CNN, {classes} classes.*config has Mask R-CNN, 11 classes.*allow_mismatch",
    ):
        load_initial_weights(rebuilt(11), str(tmp_path / "mask.pth"))
    report = load_initial_weights(rebuilt(11), str(tmp_path / "mask.pth"), allow_mismatch=True)
    names = {"box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"}
    assert set(report.mismatched) == {f"roi_heads.{name}.{kind}" for name in names for kind in ("weight", "bias")}


def rebuilt(classes):
    cfg = published.config()
    cfg.model.roi_heads.num_classes = classes
    return instantiate(cfg.model)


def test_cascade_in_a_mask_rcnn(tmp_path):
    torch.save({"state_dict": published.cascade()}, tmp_path / "cascade.pth")
    with pytest.raises(CheckpointError, match=r"holds Cascade Mask R-CNN.*the config has Mask R-CNN"):
        load_initial_weights(model(), str(tmp_path / "cascade.pth"))


class HistoryBuffer:
    """As mmengine's: arrays, and methods by name."""

    def __init__(self):
        self.max_length = 10
        self._log_history, self._count_history = np.arange(3.0), np.ones(3, dtype=np.int64)

    def mean(self):
        return self._log_history.mean()

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}


def test_files_of_mmengine(tmp_path, monkeypatch):
    raw = published.mask_rcnn()
    average = {key: value + 1 if value.is_floating_point() else value for key, value in raw.items()}
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    file = {
        "meta": {"epoch": 12, "iter": 87960, "mmengine_version": "0.10.4", "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": average,
        "ema_state_dict": {"steps": torch.tensor(9), **{f"module.{key}": value for key, value in raw.items()}},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": np.int64(3)}},
        "optimizer": {"state": {}, "param_groups": []},
        "param_schedulers": [{"last_step": np.float64(1.0)}],
    }
    with monkeypatch.context() as patch:
        patch.setattr(HistoryBuffer, "__module__", module.__name__)
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save(file, tmp_path / "mm.pth")
    loaded = read_checkpoint(tmp_path / "mm.pth")
    ours = convert_detector_state_dict(loaded)
    key = "rpn_head.rpn_conv.weight"
    assert torch.equal(ours["proposal_generator.rpn_head.conv.weight"], average[key])
    assert torch.equal(unwrap_state_dict(loaded)[key], raw[key] + 1)


def test_backbones_alone():
    bare = {k.removeprefix("backbone."): v for k, v in published.mask_rcnn().items() if k.startswith("backbone.")}
    conversion = convert_published(bare)
    assert all(name.startswith("backbone.bottom_up.") for name in conversion.state_dict)
    classifier = {key: value for key, value in bare.items() if not key.startswith("norm")}
    assert len(convert_published(classifier).state_dict) == len(conversion.state_dict) - 8
    with pytest.raises(CheckpointError, match=r"not one whole\n  1 missing: layers.0.blocks.0.mlp.fc2.weight"):
        convert_published({k: v for k, v in bare.items() if k != "layers.0.blocks.0.mlp.fc2.weight"})


def zoo():
    """A detector of Detectron2's model zoo: our neck and heads on a ResNet, as its .pkl files have it."""
    ours = convert_detector_state_dict(published.mask_rcnn())
    weights = {key: value for key, value in ours.items() if not key.startswith("backbone.bottom_up.")}
    for n, width in zip(range(2, 6), (256, 512, 1024, 2048)):
        key = f"backbone.fpn_lateral{n}.weight"
        weights[key] = torch.randn(weights[key].shape[0], width, 1, 1)
    weights["backbone.bottom_up.stem.conv1.weight"] = torch.randn(64, 3, 7, 7)
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    weights["pixel_mean"] = torch.zeros(3, 1, 1)
    return weights


def write_zoo(path, weights=None):
    arrays = {key: value.numpy() for key, value in (weights or zoo()).items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_arrays_are_read(tmp_path, protocol):
    want = zoo()
    arrays = {key: value.numpy() for key, value in want.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol))
    got = unwrap_state_dict(read_checkpoint(tmp_path / "zoo.pkl"))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_pickle_is_refused(tmp_path, capsys):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": {"a": Payload()}}))
    with pytest.raises(CheckpointError, match="builtins.print"):
        read_checkpoint(tmp_path / "bad.pkl")
    (tmp_path / "cut.pkl").write_bytes(write_zoo(tmp_path / "zoo.pkl").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut.pkl"):
        read_checkpoint(tmp_path / "cut.pkl")
    assert "code ran" not in capsys.readouterr().out


def test_parts_of_a_detector_on_another_backbone(tmp_path):
    source = write_zoo(tmp_path / "zoo.pkl")
    backbone = {k: v for k, v in published.mask_rcnn().items() if k.startswith("backbone.") and "norm3" not in k}
    backbone = {k.removeprefix("backbone."): v + 1 if v.is_floating_point() else v for k, v in backbone.items()}
    backbone = {k: v for k, v in backbone.items() if not k.startswith("norm")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    torch.manual_seed(5)
    detector = model()
    own = {key: value.clone() for key, value in detector.state_dict().items()}
    conversion = convert_file(
        source,
        tmp_path / "start.pth",
        model=detector,
        parts=["neck", "rpn", "roi_heads"],
        backbone=tmp_path / "backbone.pth",
    )
    laterals = {f"backbone.fpn_lateral{n}.weight" for n in range(2, 6)}
    assert {key for key, why in conversion.left_over.items() if why.startswith("shape")} == laterals
    assert "256" in conversion.left_over["backbone.fpn_lateral2.weight"]
    assert conversion.left_over["backbone.bottom_up.stem.conv1.weight"] == "not of the parts asked for"
    assert {key for key, why in conversion.initialised.items() if why == "newly initialised"} == laterals
    start = model()
    report = load_initial_weights(start, str(tmp_path / "start.pth"))
    assert report.initialised == {}
    loaded, want = start.state_dict(), zoo_values(source)
    for key in ("backbone.fpn_output3.weight", "roi_heads.box_head.fc1.weight", "backbone.fpn_lateral2.bias"):
        assert torch.equal(loaded[key], want[key])
    for key in laterals:
        assert torch.equal(loaded[key], own[key])
    key = "patch_embed.proj.weight"
    assert torch.equal(loaded[f"backbone.bottom_up.{key}"], backbone[key])
    assert loaded["backbone.bottom_up.norm0.weight"].eq(1).all()


def zoo_values(path):
    return unwrap_state_dict(read_checkpoint(path))


def test_parts_for_another_number_of_classes(tmp_path):
    source = write_zoo(tmp_path / "zoo.pkl")
    conversion = convert_file(source, tmp_path / "start.pth", model=rebuilt(11), parts=["roi_heads"])
    left = {key for key, why in conversion.left_over.items() if why.startswith("shape")}
    names = {"box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"}
    assert left == {f"roi_heads.{name}.{kind}" for name in names for kind in ("weight", "bias")}


def test_parts_that_cannot_be_had(tmp_path):
    source = write_zoo(tmp_path / "zoo.pkl")
    with pytest.raises(CheckpointError, match=r"no part heads: choose from backbone, neck"):
        take_parts(zoo(), ["heads"])
    with pytest.raises(CheckpointError, match=r"has no mask_head"):
        take_parts(without(zoo(), "roi_heads.mask_head."), ["rpn", "mask_head"])
    with pytest.raises(CheckpointError, match=r"completed to a whole model: name the config"):
        convert_file(source, tmp_path / "start.pth", parts=["rpn"])
    with pytest.raises(CheckpointError, match=r"zoo.pkl: .*neither an ELSA-Swin nor a Swin.*--parts"):
        convert_file(source, tmp_path / "start.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the model"):
        load_initial_weights(model(), str(source))
    assert not (tmp_path / "start.pth").exists()
