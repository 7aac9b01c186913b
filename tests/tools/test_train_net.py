"""The main command end to end on a small set: training, resuming, evaluation, and what it says when it cannot start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elsa_det.d2 import default_argument_parser
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.engine.training import main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart" / "elsa_nano_mrcnn.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, SetSpec(train=6, val=3, scene=SceneSpec(image_size=64, max_object=40)))
    return [
        *overrides_for(folder),
        "model.backbone.bottom_up.embed_dim=16",
        "dataloader.train.total_batch_size=2",
        "train.log_period=1",
        "train.eval_period=0",
        "train.seed=3",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
    ]


def run(*args, config=CONFIG):
    """In this process, as the tool does after launching."""
    return main(default_argument_parser().parse_args(["--config-file", config, *args]))


def command(*args, config=CONFIG):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tools/lazyconfig_train_net.py"), "--config-file", config, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = command(*data, f"train.output_dir={folder}", "train.max_iter=4", "train.checkpointer.period=2")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout + done.stderr


def test_training_writes_what_is_expected(trained):
    folder, log = trained
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "model_0000001.pth"} <= set(os.listdir(folder))
    assert {"command.txt", "environment.txt", "git.txt", "summary.png"} <= set(os.listdir(folder))
    assert os.listdir(folder / "predictions") == ["iter_0000003.png"]
    assert "tools/lazyconfig_train_net.py --config-file" in (folder / "command.txt").read_text()
    assert "Running on " in log
    assert "Training from scratch, as train.init_checkpoint=none asks for." in log
    if not torch.cuda.is_available():
        assert "Device: cpu; mixed precision is for CUDA and was turned off" in log
    assert (folder / "config.yaml").read_text().startswith("# Saved by elsa_det")
    assert set(losses(folder)) == {0, 1, 2, 3}
    assert all(0.5 < loss < 6 for loss in losses(folder).values())
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 3


def test_evaluation_of_the_checkpoint(data, trained, tmp_path):
    folder, _ = trained
    overrides = [*data, f"train.output_dir={tmp_path}", "model.roi_heads.box_predictor.test_score_thresh=0.0"]
    results = run("--eval-only", *overrides, f"train.init_checkpoint={folder}/model_final.pth")
    assert set(results) == {"bbox", "segm"}
    assert 0 <= results["bbox"]["AP"] <= 100
    predictions = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {p["image_id"] for p in predictions} == {1, 2, 3}
    assert all({"category_id", "bbox", "score", "segmentation"} <= set(p) for p in predictions)


def test_resume_goes_on(data, trained, tmp_path):
    folder, _ = trained
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    run("--resume", *data, f"train.output_dir={tmp_path}", "train.max_iter=6")
    assert set(losses(tmp_path)) == {3, 4, 5}  # the last line before the interruption is written once more
    assert losses(tmp_path)[3] == losses(folder)[3]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_two_processes_train_and_evaluate_together(data, tmp_path):
    """Three images are split unevenly, and each counts once: the predictions are those of one process."""
    thresh = "model.roi_heads.box_predictor.test_score_thresh=0.0"
    together, alone = tmp_path / "together", tmp_path / "alone"
    done = command(
        "--num-gpus", "2", *data, thresh, f"train.output_dir={together}", "train.max_iter=2", "train.eval_period=2"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Rank of current process: 0. World size: 2" in done.stdout
    assert (together / "log.txt.rank1").exists()
    assert set(losses(together)) == {0, 1}
    run("--eval-only", *data, thresh, f"train.output_dir={alone}", f"train.init_checkpoint={together}/model_final.pth")
    found, expected = (json.loads((f / "coco_instances_results.json").read_text()) for f in (together, alone))
    assert {p["image_id"] for p in found} == {1, 2, 3}
    for predictions in (found, expected):
        predictions.sort(key=lambda p: (p["image_id"], -p["score"], p["bbox"]))
    assert len(found) == len(expected)
    assert [p["score"] for p in found] == pytest.approx([p["score"] for p in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train.init_checkpoint=pretrained/elsa_swin_tiny.pth"], "pretrained/elsa_swin_tiny.pth does not exist"),
        (["dataset.train.json_file='???'"], r"leaves open: .*dataset.train.json_file.*Give them as key=value"),
        (
            ["dataset.train.name=nothing", "dataset.train.json_file=null", "dataset.train.image_root=null"],
            "'nothing' is not registered",
        ),
        (["dataset.test.name=null", "dataset.test.json_file=null", "dataset.test.image_root=null"], "no data is named"),
        (["train.init_checkpoint="], "train from scratch with train.init_checkpoint=none"),
        (["--eval-only"], "needs a checkpoint of the whole model"),
        (["model.roi_heads.num_classes=9"], r"has 6 classes \(disc, square, triangle, star, ring, …\), the model 9"),
        (["dataset.train.json_file=gone.json"], "json_file=gone.json does not exist"),
    ],
)
def test_what_cannot_start_says_why(data, tmp_path, args, message):
    flags = [arg for arg in args if arg.startswith("--")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*flags, *data, *(arg for arg in args if arg not in flags), f"train.output_dir={tmp_path}")


def test_the_command_shows_user_errors_without_a_traceback(data, tmp_path):
    done = command(*data, "train.init_checkpoint=", f"train.output_dir={tmp_path}")
    assert (done.returncode, done.stderr.splitlines()[-1][:43]) == (1, "error: train.init_checkpoint is empty: name")
    assert "Traceback" not in done.stderr
    with pytest.raises(FileNotFoundError, match="config file no_such.py does not exist"):
        run(config="no_such.py")
