"""tools/convert_checkpoint.py from its command line."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path

import published_detectors as published
import pytest
import torch
from safetensors.torch import load_file

from elsa_det.checkpoint import convert_detector_state_dict, load_initial_weights
from elsa_det.d2 import DetectionCheckpointer, LazyConfig, instantiate

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_checkpoint_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a published detector and the config of its model."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": published.mask_rcnn(), "meta": {"epoch": 12}}, "published.pth")
    LazyConfig.save(published.config(), "config.yaml")
    return tmp_path


WANTED = convert_detector_state_dict(published.mask_rcnn())


def same(got, want):
    return got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


def test_converted_file_loads_with_the_checkpointer_and_as_initial_weights(tool, place, capsys):
    assert tool(["published.pth", "ours.pth", "--config-file", "config.yaml"]) == 0
    assert same(torch.load("ours.pth", weights_only=True)["model"], WANTED)
    detector = instantiate(published.config().model)
    DetectionCheckpointer(detector).load("ours.pth")
    assert same(detector.state_dict(), WANTED)
    other = instantiate(published.config().model)
    assert load_initial_weights(other, "ours.pth").initialised == {}
    assert same(other.state_dict(), WANTED)

    lines = capsys.readouterr().out.splitlines()
    source = published.mask_rcnn()
    for key in source:
        (line,) = [line for line in lines if line.split(" ")[0] == key]
        assert " -> " in line or " left over: " in line
    left = sum(key.endswith("relative_id") for key in source)
    assert f"{len(source) - left} tensors taken (0 under the same name), {left} left over" in lines[-1]
    assert "rpn_head.rpn_conv.bias" in " ".join(lines)


def test_safetensors_both_ways(tool, place):
    assert tool(["published.pth", "ours.safetensors", "--summary"]) == 0
    assert same(load_file("ours.safetensors"), WANTED)
    assert tool(["ours.safetensors", "again.pth"]) == 0
    assert same(torch.load("again.pth", weights_only=True)["model"], WANTED)


def test_round_trip(tool, place):
    assert tool(["published.pth", "ours.pth"]) == 0
    assert tool(["ours.pth", "back.pth", "--to", "mmdetection"]) == 0
    back = torch.load("back.pth", weights_only=True)["state_dict"]
    assert same(back, {k: v for k, v in published.mask_rcnn().items() if not k.endswith("relative_id")})


def test_backbone_alone(tool, place, capsys):
    backbone = {k.removeprefix("backbone."): v for k, v in published.mask_rcnn().items() if k.startswith("backbone.")}
    torch.save({"state_dict_ema": backbone}, "backbone.pth")
    assert tool(["backbone.pth", "ours.pth", "--config-file", "config.yaml", "--summary"]) == 0
    assert same(
        torch.load("ours.pth", weights_only=True)["model"],
        {k: v for k, v in WANTED.items() if k.startswith("backbone.bottom_up.")},
    )
    detector = instantiate(published.config().model)
    report = load_initial_weights(detector, "ours.pth")
    assert len(report.matched) == sum(k.startswith("backbone.bottom_up.") for k in WANTED)


def test_parts(tool, place, capsys):
    arrays = {k: v.numpy() for k, v in WANTED.items() if not k.startswith("backbone.")}
    Path("zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    options = ["--parts", "rpn,roi_heads", "--config-file", "config.yaml"]
    assert tool(["zoo.pkl", "start.pth", *options]) == 0
    start = torch.load("start.pth", weights_only=True)["model"]
    assert start.keys() == WANTED.keys()
    assert all(torch.equal(start[key], WANTED[key]) for key in arrays)
    out = capsys.readouterr().out
    assert "backbone.bottom_up.patch_embed.proj.weight: newly initialised" in out
    assert f"{len(arrays)} tensors taken" in out
    assert f"{len(WANTED) - len(arrays)} of the model from elsewhere" in out


BAD = {
    "no input": (["absent.pth", "ours.pth"], "absent.pth does not exist"),
    "no config": (["published.pth", "ours.pth", "--config-file", "absent.py"], "absent.py does not exist"),
    "ending": (["published.pth", "ours.bin"], r"ours.bin must end in one of .pth, .pt, .safetensors"),
    "truncated": (["cut.pth", "ours.pth"], "cut.pth .* is truncated or not a PyTorch checkpoint"),
    "truncated safetensors": (["cut.safetensors", "ours.pth"], "cut.safetensors is not a readable safetensors file"),
    "classes": (
        ["published.pth", "ours.pth", "--config-file", "config.yaml", "model.roi_heads.num_classes=11"],
        r"published.pth: the checkpoint \(Mask R-CNN.*does not fit the config \(Mask R-CNN, 11 classes.*"
        r"model.roi_heads.num_classes=5 gives it as many.*roi_heads.box_predictor.cls_score.weight",
    ),
    "cascade": (
        ["cascade.pth", "ours.pth", "--config-file", "config.yaml"],
        r"\(Cascade Mask R-CNN.*does not fit the config \(Mask R-CNN.*\n"
        r".*missing: roi_heads.box_head.fc1.weight.*unexpected",
    ),
    "without the mask head": (
        ["faster.pth", "ours.pth", "--config-file", "config.yaml"],
        r"\(Faster R-CNN.*missing: roi_heads.mask_head.mask_fcn1.weight",
    ),
    "backbone of another width": (
        ["backbone.pth", "ours.pth", "--config-file", "config.yaml", "model.backbone.bottom_up.embed_dim=24"],
        r"backbone.pth: .*\(ELSA-Swin of no published size \(embed_dim 12.*not fit the config\n.*of another shape: "
        r"backbone.bottom_up.patch_embed",
    ),
    "itself": (["published.pth", "published.pth", "--overwrite"], "published.pth exists already"),
    "there already": (["published.pth", "cascade.pth"], "cascade.pth exists already: name another file, or ask"),
    "unknown part": (
        ["published.pth", "o.pth", "--parts", "rnp", "--config-file", "config.yaml"],
        "there is no part rnp",
    ),
    "nan": (["nan.pth", "ours.pth"], r"nan.pth: .*NaN or infinite values.*rpn_head.rpn_cls.bias"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_a_line_for_the_user(tool, place, capsys, case):
    whole = Path("published.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    Path("cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save({"state_dict": published.cascade()}, "cascade.pth")
    faster = {k: v for k, v in published.mask_rcnn().items() if "mask_head" not in k}
    torch.save({"state_dict": faster}, "faster.pth")
    backbone = {k.removeprefix("backbone."): v for k, v in published.mask_rcnn().items() if k.startswith("backbone.")}
    torch.save({"model": backbone}, "backbone.pth")
    bad = published.mask_rcnn()
    bad["rpn_head.rpn_cls.bias"][0] = float("nan")
    torch.save({"state_dict": bad}, "nan.pth")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    arguments, message = BAD[case]
    assert tool(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert re.search(message, captured.err, re.DOTALL), captured.err
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_overwriting_has_to_be_asked_for(tool, place):
    Path("ours.pth").write_text("old")
    assert tool(["published.pth", "ours.pth"]) == 1
    assert Path("ours.pth").read_text() == "old"
    assert tool(["published.pth", "ours.pth", "--overwrite", "--summary"]) == 0
    assert same(torch.load("ours.pth", weights_only=True)["model"], WANTED)
