"""The training command with its switches on, on a few small pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from elsa_det.d2 import default_argument_parser
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.engine.training import main
from elsa_det.errors import UserError

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart" / "elsa_nano_mrcnn.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, SetSpec(train=6, val=2, scene=SceneSpec(image_size=64, max_object=40)))
    return [
        *overrides_for(folder),
        "model.backbone.bottom_up.embed_dim=16",
        "model.roi_heads.box_predictor.test_score_thresh=0.0",
        "model.roi_heads.box_predictor.test_topk_per_image=5",
        "dataloader.train.total_batch_size=4",
        "train.log_period=1",
        "train.seed=3",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "train.figures.enabled=False",
    ]


def run(folder, *args):
    args = [*args, f"train.output_dir={folder}"]
    return main(default_argument_parser().parse_args(["--config-file", CONFIG, *args]))


def metrics(folder):
    found: dict[int, dict] = {}
    for line in (Path(folder) / "metrics.json").read_text().splitlines():
        scalars = json.loads(line)
        found.setdefault(scalars["iteration"], {}).update(scalars)
    return found


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """Everything at once; no evaluation after the first improves by as much as is asked for."""
    folder = tmp_path_factory.mktemp("run")
    switches = [
        "train.max_iter=9",
        "train.eval_period=2",
        "train.checkpointer.period=2",
        "train.accumulate=2",
        "train.ema.enabled=True",
        "train.ema.decay=0.5",
        "train.best.metric=bbox_EMA/AP",
        "train.early_stopping.metric=segm/AP",
        "train.early_stopping.patience=1",
        "train.early_stopping.min_delta=100",
        "train.figures.enabled=True",
    ]
    return folder, run(folder, *data, *switches)


def test_all_switches_together(stopped):
    folder, results = stopped
    assert set(results) == {"bbox", "segm", "bbox_EMA", "segm_EMA"}
    seen = metrics(folder)
    assert {i for i, scalars in seen.items() if "total_loss" in scalars} == {0, 1, 2, 3}
    assert {i for i, scalars in seen.items() if "bbox/AP" in scalars} == {1, 3}
    assert {i for i, scalars in seen.items() if "segm_EMA/AP50" in scalars} == {1, 3}
    assert all(scalars["grad_norm"] > 0 for scalars in seen.values() if "total_loss" in scalars)
    assert results["bbox_EMA"]["AP"] == pytest.approx(seen[3]["bbox_EMA/AP"], nan_ok=True)
    log = (folder / "log.txt").read_text()
    assert "Switched on: gradients of 2 micro-batches make a step" in log
    assert "Stopping early after iteration 3: segm/AP has not improved by more than 100 in 1 evaluations" in log
    assert (folder / "inference_EMA" / "coco_instances_results.json").is_file()


def test_an_average_does_not_change_the_training(data, tmp_path):
    switches = ["train.max_iter=4", "train.eval_period=2"]
    run(tmp_path / "without", *data, *switches)
    run(tmp_path / "with", *data, *switches, "train.ema.enabled=True")
    without, beside = (metrics(tmp_path / name) for name in ("without", "with"))
    assert [beside[i]["total_loss"] for i in range(4)] == [without[i]["total_loss"] for i in range(4)]
    assert beside[1]["bbox/AP"] == pytest.approx(without[1]["bbox/AP"], nan_ok=True)


def test_what_it_leaves_behind(stopped):
    folder, _ = stopped
    written = {name for name in os.listdir(folder) if name.endswith(".pth") and name.startswith("model")}
    assert written == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
        "model_final_ema.pth",
        "model_best.pth",
    }
    final, averaged, best = (
        torch.load(folder / f"{name}.pth", weights_only=True)
        for name in ("model_final", "model_final_ema", "model_best")
    )
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert final["trainer"]["iteration"] == 3
    assert set(final["trainer"]["hooks"]) >= {"KeepBest", "EarlyStopping"}
    assert set(final["ema_state"]) == set(final["model"]) == set(averaged["model"])
    for name, value in averaged["model"].items():
        torch.testing.assert_close(value, final["ema_state"][name])
    assert any(not torch.equal(averaged["model"][n], final["model"][n]) for n in averaged["model"])
    # decay 0.5 over four steps: half of the last, and halves of what was before
    earlier = torch.load(folder / "model_0000001.pth", weights_only=True)
    assert set(earlier["trainer"]["hooks"]) >= {"KeepBest", "EarlyStopping"}  # known although written before
    assert best["iteration"] in (1, 3)
    source = earlier if best["iteration"] == 1 else final
    for name, value in best["model"].items():
        torch.testing.assert_close(value, source["ema_state"][name])


def test_averaged_weights_evaluate_as_any(data, stopped, tmp_path):
    folder, results = stopped
    alone = run(tmp_path, "--eval-only", *data, f"train.init_checkpoint={folder}/model_final_ema.pth")
    assert alone["bbox"] == pytest.approx(results["bbox_EMA"], nan_ok=True)
    assert alone["segm"] == pytest.approx(results["segm_EMA"], nan_ok=True)


def copy_run(source, target):
    target.mkdir(exist_ok=True)
    for name in ("model_final.pth", "last_checkpoint"):
        (target / name).write_bytes((source / name).read_bytes())


def test_a_stopped_run_does_not_go_on_by_itself(data, stopped, tmp_path):
    copy_run(stopped[0], tmp_path)
    stopping = ["train.early_stopping.metric=segm/AP", "train.early_stopping.min_delta=100", "train.eval_period=2"]
    results = run(tmp_path, "--resume", *data, *stopping, "train.max_iter=9", "train.early_stopping.patience=1")
    assert set(results) == {"bbox", "segm"}
    log = (tmp_path / "log.txt").read_text()
    assert "Not going on, because the run had stopped early" in log
    assert "moving average (ema_state), and train.ema is off: it is dropped" in log
    run(tmp_path, "--resume", *data, *stopping, "train.max_iter=9", "train.early_stopping.patience=2")
    # the last line before the interruption is written once more
    assert {i for i, scalars in metrics(tmp_path).items() if "total_loss" in scalars} == {3, 4, 5}


def test_resuming_with_an_average_that_was_not_there(data, stopped, tmp_path):
    copy_run(stopped[0], tmp_path)
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    del checkpoint["ema_state"]
    torch.save(checkpoint, tmp_path / "model_final.pth")
    run(
        tmp_path,
        "--resume",
        *data,
        "train.max_iter=5",
        "train.ema.enabled=True",
        "train.ema.evaluate=ema",
        "train.eval_period=0",
    )
    assert "has no ema_state: the moving average starts from its weights" in (tmp_path / "log.txt").read_text()
    assert {k for k in metrics(tmp_path)[5] if k.endswith("/AP")} == {"bbox_EMA/AP", "segm_EMA/AP"}


def test_contradictions_are_said_before_the_work(data, tmp_path):
    with pytest.raises(UserError, match="does not divide into 3 passes"):
        run(tmp_path / "never", *data, "train.accumulate=3")
    assert not (tmp_path / "never").exists()
    with pytest.raises(UserError, match=r"no metric 'bbox/AP-disk'; did you mean bbox/AP-disc"):
        run(tmp_path, *data, "train.best.metric=bbox/AP-disk", "train.max_iter=2", "train.eval_period=1")


def test_bad_numbers_are_written_down_with_their_images(data, tmp_path):
    """A learning rate that ruins the weights in the first step: those after it are left out, and then it ends."""
    options = ["optimizer.lr=1e30", "train.clip_grad_norm=null", "train.max_iter=9", "train.eval_period=0"]
    options += ["train.bad_numbers.action=skip", "train.bad_numbers.max_in_a_row=2", "train.ema.enabled=True"]
    options += ["lr_multiplier.warmup_factor=1.0", "train.figures.enabled=False"]
    with pytest.raises(UserError, match=r"2 times in a row .* Look at the batch, lower optimizer.lr"):
        run(tmp_path, *data, *options)
    lines = [json.loads(line) for line in (tmp_path / "bad_numbers.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["action"], line["in_a_row"]) for line in lines] == [(1, "skip", 1), (2, "stop", 2)]
    for line in lines:
        ((first, *others),) = line["passes"]
        assert len(others) == 3
        assert first["file_name"].endswith(f"/train/{first['image_id'] - 1:06d}.png")
        assert first["image"]["shape"] == [3, 64, 64]
        assert line["lr"][0] > 8e29
    log = (tmp_path / "log.txt").read_text()
    assert "Switched on: losses and gradients that are not finite: skip" in log
    assert "WARNING: Bad numbers at iteration 1: " in log
