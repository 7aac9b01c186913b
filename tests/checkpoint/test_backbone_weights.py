"""Published ImageNet weights: every form they come in, what they give, and what is said when they do not fit."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import timm
import torch

from elsa_det.checkpoint import (
    CheckpointError,
    convert_backbone_state_dict,
    load_initial_weights,
    read_checkpoint,
    unwrap_state_dict,
)
from elsa_det.d2 import FPN
from elsa_det.modeling import ELSA_SWIN_VARIANTS, ELSASwin, Swin

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "elsa_swin_imagenet_checkpoint.pth"
CLASSIFIER = torch.load(GOLDEN / "elsa_swin_imagenet.pt", weights_only=True)
FEATURES = torch.load(GOLDEN / "elsa_swin_imagenet_features.pt", weights_only=True)


def published():
    return torch.load(CHECKPOINT, weights_only=True)["state_dict"]


def assert_recorded_features(model):
    with torch.no_grad():
        maps = model.eval()(CLASSIFIER["image"])
    for got, want in zip(maps.values(), FEATURES, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_published_checkpoint_gives_the_recorded_features():
    model = ELSASwin(**CLASSIFIER["kwargs"])
    report = load_initial_weights(model, str(CHECKPOINT))
    assert_recorded_features(model)
    assert len(report.matched) == 124
    assert set(report.initialised) == {f"norm{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    assert set(report.left_over) == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
        "layers.3.blocks.0.attn.relative_id",
        "layers.3.blocks.1.attn.relative_id",
    }
    assert "124 tensors loaded" in str(report)
    assert "8 of the model kept their initialisation" in str(report)
    assert "6 of the file were left over" in str(report)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"state_dict": sd, "epoch": 3},
        lambda sd: {"model": sd},
        lambda sd: {"state_dict_ema": sd, "state_dict": {k: v + 1 for k, v in sd.items()}},
        lambda sd: {"state_dict": {f"module.{k}": v for k, v in sd.items()}},
        lambda sd: {"state_dict": sd, "args": argparse.Namespace(lr=0.1, opt="adamw"), "metric": 82.7},
        lambda sd: {"state_dict": {**{f"backbone.{k}": v for k, v in sd.items()}, "neck.x": torch.ones(2)}},
        lambda sd: {**sd, "layers.3.blocks.1.attn_mask": torch.zeros(4, 49, 49)},
    ],
    ids=["bare", "state_dict", "model", "ema", "module.", "timm args", "backbone.", "attn_mask"],
)
def test_every_published_form(tmp_path, wrap):
    torch.save(wrap(published()), tmp_path / "weights.pth")
    model = ELSASwin(**CLASSIFIER["kwargs"])
    load_initial_weights(model, str(tmp_path / "weights.pth"))
    assert_recorded_features(model)


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file(published(), tmp_path / "weights.safetensors")
    model = ELSASwin(**CLASSIFIER["kwargs"])
    load_initial_weights(model, str(tmp_path / "weights.safetensors"))
    assert_recorded_features(model)


def test_backbone_inside_a_detector_gets_the_weights():
    fpn = FPN(bottom_up=ELSASwin(**CLASSIFIER["kwargs"]), in_features=["p0", "p1", "p2", "p3"], out_channels=8)
    load_initial_weights(fpn, str(CHECKPOINT))
    assert_recorded_features(fpn.bottom_up)


def test_conversion_is_idempotent():
    once = convert_backbone_state_dict(published())
    twice = convert_backbone_state_dict(once)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_swin_in_microsofts_and_timms_names():
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), num_classes=5).state_dict()
    ours = convert_backbone_state_dict(theirs)
    microsoft = {}
    for key, value in theirs.items():
        if ".downsample." in key:
            _, stage, rest = key.split(".", 2)
            key = f"layers.{int(stage) - 1}.{rest}"
        microsoft[key.replace("head.fc.", "head.")] = value
    microsoft["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49).long()
    for state_dict in (ours, convert_backbone_state_dict({"model": microsoft})):
        missing, unexpected = Swin(depths=(1, 1, 1, 1)).load_state_dict(state_dict, strict=False)
        assert unexpected == []
        assert all(key.startswith("norm") for key in missing)
    assert torch.equal(
        convert_backbone_state_dict({"model": microsoft})["layers.1.downsample.reduction.weight"],
        theirs["layers.2.downsample.reduction.weight"],
    )


def test_weights_of_another_variant_are_named(tmp_path):
    with torch.device("meta"):
        small = ELSASwin(**ELSA_SWIN_VARIANTS["small"]).state_dict()
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in small.items()}, tmp_path / "s.pth")
    tiny = ELSASwin(**ELSA_SWIN_VARIANTS["tiny"])
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"looks like ELSA-Swin-S \(embed_dim 96.*backbone is ELSA-Swin-T \("):
        load_initial_weights(tiny, str(tmp_path / "s.pth"))
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())


def test_elsa_weights_in_a_swin():
    settings = {key: value for key, value in CLASSIFIER["kwargs"].items() if key != "group_width"}
    with pytest.raises(CheckpointError, match="looks like ELSA-Swin of no published size.*backbone is Swin"):
        load_initial_weights(Swin(**settings), str(CHECKPOINT))


def test_missing_file_of_a_recipe_says_where_it_comes_from():
    with pytest.raises(FileNotFoundError, match="elsa_swin_tiny.pth does not exist.*ELSA-Swin-T.*damo-cv/ELSA.*=none"):
        load_initial_weights(torch.nn.Linear(1, 1), "nowhere/elsa_swin_tiny.pth")


def test_scratch_has_to_be_asked_for():
    assert load_initial_weights(torch.nn.Linear(1, 1), "none") is None
    with pytest.raises(ValueError, match="train.init_checkpoint=none"):
        load_initial_weights(torch.nn.Linear(1, 1), "")


def test_truncated_file(tmp_path):
    (tmp_path / "cut.pth").write_bytes(CHECKPOINT.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut.pth \(5,000 bytes\) is truncated or not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "cut.pth")


def test_text_instead_of_weights(tmp_path):
    (tmp_path / "page.pth").write_text("<html>quota exceeded</html>")
    with pytest.raises(CheckpointError, match=r"page.pth"):
        read_checkpoint(tmp_path / "page.pth")


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"state_dict": published(), "hook": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="print.*could run code.*ELSA_DET_TRUST=checkpoints.*allow_code=True"):
        read_checkpoint(tmp_path / "bad.pth")
    assert "code ran" not in capsys.readouterr().out


def test_logs_of_mmengine_are_read_without_it(tmp_path):
    import sys
    import types

    import numpy as np

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    buffer = module.HistoryBuffer()
    buffer._log_history = np.arange(3.0)
    names = ["mmengine", "mmengine.logging", module.__name__]
    try:
        sys.modules.update(dict.fromkeys(names, module))
        torch.save({"state_dict": published(), "message_hub": {"loss": buffer}}, tmp_path / "mm.pth")
    finally:
        for name in names:
            del sys.modules[name]
    assert len(unwrap_state_dict(read_checkpoint(tmp_path / "mm.pth"))) == len(published())


def test_other_contents_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no weights found.*list"):
        load_initial_weights(ELSASwin(**CLASSIFIER["kwargs"]), str(tmp_path / "list.pth"))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match="not the weights of an ELSA-Swin or Swin"):
        load_initial_weights(ELSASwin(**CLASSIFIER["kwargs"]), str(tmp_path / "linear.pth"))


def test_whole_model_checkpoints(tmp_path):
    def detector(classes):
        return torch.nn.ModuleDict({"backbone": ELSASwin(**CLASSIFIER["kwargs"]), "head": torch.nn.Linear(4, classes)})

    trained = detector(3)
    torch.save({"model": trained.state_dict(), "iteration": 7}, tmp_path / "model.pth")
    same = detector(3)
    report = load_initial_weights(same, str(tmp_path / "model.pth"))
    assert len(report.matched) == len(trained.state_dict())
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in trained.state_dict().items())

    with pytest.raises(CheckpointError, match=r"does not fit.*train.init_allow_mismatch=True"):
        load_initial_weights(detector(5), str(tmp_path / "model.pth"))
    other = detector(5)
    report = load_initial_weights(other, str(tmp_path / "model.pth"), allow_mismatch=True)
    assert report.mismatched == {
        "head.weight": "shape (3, 4) in the file, (5, 4) in the model",
        "head.bias": "shape (3,) in the file, (5,) in the model",
    }
    torch.testing.assert_close(other["backbone"].state_dict(), trained["backbone"].state_dict())


def test_pickle_protocol_of_old_files(tmp_path):
    torch.save({"state_dict": published()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert len(unwrap_state_dict(read_checkpoint(tmp_path / "old.pth"))) == len(published())
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="raw.pth"):
        unwrap_state_dict(read_checkpoint(tmp_path / "raw.pth"))
