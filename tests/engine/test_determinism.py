"""The same seed gives the same losses, bit for bit on the CPU."""

from __future__ import annotations

import json
import os

import pytest
import torch

from elsa_det import get_config
from elsa_det.config import config_root
from elsa_det.d2 import default_argument_parser
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.engine.determinism import check_deterministic, make_deterministic
from elsa_det.engine.training import main
from elsa_det.errors import UserError


@pytest.fixture
def settings(monkeypatch):
    """What :func:`make_deterministic` sets, put back afterwards."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_what_is_set(settings):
    (line,) = make_deterministic("cpu")
    assert line == "Deterministic: on the CPU the same seed, threads and processes give the same numbers bit for bit"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"  # the user's own
    (line,) = make_deterministic("cuda")
    assert "the backward of ROIAlign" in line
    assert line.endswith("CUBLAS_WORKSPACE_CONFIG=:16:8")


def test_what_contradicts_it():
    cfg = get_config("quickstart/elsa_nano_mrcnn")
    assert check_deterministic(cfg) is False
    del cfg.train.deterministic  # a config from before it
    assert check_deterministic(cfg) is False
    cfg.train.deterministic = True
    assert check_deterministic(cfg) is True
    cfg.train.cudnn_benchmark = True
    with pytest.raises(UserError, match="contradict each other"):
        check_deterministic(cfg)
    cfg.train.seed = -1
    with pytest.raises(UserError, match="train.seed=-1, which draws another seed each time: set train.seed=0"):
        check_deterministic(cfg)
    cfg.train.deterministic = "yes"
    with pytest.raises(UserError, match="train.deterministic='yes' must be True or False"):
        check_deterministic(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_of_one_seed_are_equal(settings, workers, tmp_path):
    write_shapes(tmp_path, SetSpec(train=6, val=2, scene=SceneSpec(image_size=48, max_object=30)))
    losses = []
    for number, seed in enumerate((3, 3) if workers else (3, 3, 4)):
        folder = tmp_path / f"run{number}"
        opts = [
            *("train.deterministic=True", f"train.seed={seed}", f"train.output_dir={folder}", "train.device=cpu"),
            *(
                "train.max_iter=3",
                "train.log_period=1",
                "train.eval_period=0",
                "train.check_memory=off",
                "train.figures.enabled=False",
            ),
            *(
                "dataloader.train.total_batch_size=2",
                f"dataloader.train.num_workers={workers}",
                "dataloader.test.num_workers=0",
            ),
            "model.backbone.bottom_up.embed_dim=16",
            *overrides_for(tmp_path),
        ]
        config = str(config_root() / "quickstart" / "elsa_nano_mrcnn.py")
        main(default_argument_parser().parse_args(["--config-file", config, *opts]))
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        lines = [line for line in lines if "total_loss" in line]  # the last one is of the evaluation
        losses.append([{k: v for k, v in line.items() if "loss" in k or k == "grad_norm"} for line in lines])
        state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
        if number == 0:
            first = state
        elif number == 1:
            assert all(torch.equal(first[key], state[key]) for key in first)
    assert len(losses[0]) == 3
    assert all(line["total_loss"] > 0 and "grad_norm" in line for line in losses[0])
    assert losses[0] == losses[1]
    assert all(others != losses[0] for others in losses[2:])
