"""What is tried and checked before a training: ``--dry-run``, ``train.check_data``, ``train.limit_eval_images``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from elsa_det import get_config
from elsa_det.d2 import Boxes, Instances, LazyConfig, default_argument_parser, instantiate
from elsa_det.data.shapes import SceneSpec, SetSpec, write_shapes
from elsa_det.engine.data_checks import check_own_data
from elsa_det.engine.training import main
from elsa_det.errors import UserError
from elsa_det.evaluation import limit_evaluation
from elsa_det.evaluation.limited import SeenImagesCOCOEvaluator

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "own_data" / "elsa_nano_mrcnn.py")
SMALL = [
    "train.init_checkpoint=none",
    "model.backbone.bottom_up.embed_dim=16",
    "dataset.image_size.train=[64]",
    "dataset.image_size.test=64",
    "dataloader.train.total_batch_size=2",
    "train.seed=3",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]


@pytest.fixture
def shapes(tmp_path):
    """The folder, and the overrides that name its data."""
    write_shapes(tmp_path, SetSpec(train=6, val=3, scene=SceneSpec(image_size=64, max_object=40)))
    return tmp_path, [
        f"dataset.train.json_file={tmp_path}/annotations/instances_train.json",
        f"dataset.train.image_root={tmp_path}/train",
    ]


def with_test_data(folder):
    return [
        f"dataset.test.json_file={folder}/annotations/instances_val.json",
        f"dataset.test.image_root={folder}/val",
    ]


def arguments(*opts, dry_run=False, eval_only=False, config=CONFIG):
    flags = ["--eval-only"] if eval_only else []
    args = default_argument_parser().parse_args(["--config-file", config, *flags, *opts])
    args.dry_run = dry_run
    return args


def test_dry_run(shapes, capsys):
    folder, overrides = shapes
    opts = [*SMALL, *overrides, "dataset.val_fraction=0.34", f"train.output_dir={folder}/run"]
    found = main(arguments(*opts, dry_run=True))
    model = instantiate(get_config("own_data/elsa_nano_mrcnn", [*opts, f"train.output_dir={folder}/other"]).model)
    parameters = sum(p.numel() for p in model.parameters())
    assert model.roi_heads.num_classes == 6
    assert (found.parameters, found.trainable) == (parameters, parameters)
    # float32 weights, gradients and two averages of AdamW; every parameter gets a gradient, steps are counted by each
    assert found.state_bytes == 4 * 4 * parameters + 4 * len(list(model.parameters()))
    assert set(found.losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert all(0 < loss < 3 for loss in found.losses.values())
    assert (found.images, found.image_size) == (2, (64, 64))
    assert found.activation_bytes is not None
    assert 1e6 < found.activation_bytes < 1e9
    assert found.peak_bytes > found.activation_bytes
    shown = capsys.readouterr().out
    assert "instances_train.json: 6 images, 0 of them without objects" in shown
    assert f"GeneralizedRCNN, {parameters / 1e6:.2f} M parameters" in shown
    assert f"nothing written to {folder}/run" in shown
    assert not (folder / "run").exists()


def test_activations_grow_with_the_batch(shapes):
    folder, overrides = shapes
    opts = [*SMALL, *overrides, *with_test_data(folder), f"train.output_dir={folder}/run"]
    two = main(arguments(*opts, dry_run=True))
    one = main(arguments(*opts, "train.accumulate=2", "train.ema.enabled=True", dry_run=True))
    assert (one.images, two.images) == (1, 2)
    assert two.activation_bytes == 2 * one.activation_bytes
    assert one.state_bytes - two.state_bytes == 4 * one.parameters


def test_dry_run_finds_what_headers_tell(shapes):
    folder, overrides = shapes
    image = next((folder / "train").iterdir())
    Image.open(image).resize((32, 32)).save(image)
    with pytest.raises(UserError, match=r"1 error.*\n.*image is 32 x 32, the json says 64 x 64"):
        main(arguments(*SMALL, *overrides, "dataset.val_fraction=0.34", dry_run=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["train.init_checkpoint=gone.pth"], "gone.pth does not exist"),
        (
            ["model.roi_heads.box_predictor.loss_weight={loss_cls:inf}"],
            "losses of the first batch are not finite: loss_cls=inf",
        ),
        (["model.pixel_std=[0,0,0]"], "losses of the first batch are not finite: .*(NaN|nan)"),
        (["train.output_dir=/dev/null/run"], "train.output_dir=/dev/null/run cannot be written: /dev/null is a file"),
    ],
)
def test_dry_run_fails_as_a_training_would(shapes, change, message):
    folder, overrides = shapes
    with pytest.raises((UserError, FileNotFoundError), match=message):
        main(arguments(*SMALL, *overrides, *with_test_data(folder), *change, dry_run=True))


def test_dry_run_is_not_for_evaluation(shapes):
    with pytest.raises(UserError, match="leave --eval-only out"):
        main(arguments(*SMALL, *shapes[1], dry_run=True, eval_only=True))


def test_the_command(shapes):
    folder, overrides = shapes
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools/lazyconfig_train_net.py"), "--dry-run"]
    opts = ["--config-file", CONFIG, *SMALL, *overrides, f"train.output_dir={folder}/run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    opts.append("dataset.val_fraction=0.5")
    done = subprocess.run([*command, *opts], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Memory estimate: 0." in done.stdout
    assert not (folder / "run").exists()
    with pytest.raises(UserError, match="dataset.val_fraction=2 is a "):
        main(arguments(*SMALL, *overrides, "dataset.val_fraction=2", dry_run=True))


def test_training_on_a_share_from_the_command_line(shapes):
    """Nothing but the json, the folder and a share: the saved config and the split are enough to evaluate again."""
    folder, overrides = shapes
    run = folder / "run"
    more = ["dataset.val_fraction=0.34", "train.max_iter=2", "train.eval_period=2", f"train.output_dir={run}"]
    score = "model.roi_heads.box_predictor.test_score_thresh=0.0"
    results = main(arguments(*SMALL, *overrides, *more, score))
    assert set(results) == {"bbox", "segm"}
    split = {part: json.loads((run / "data" / f"{part}.json").read_text())["images"] for part in ("train", "test")}
    assert (len(split["train"]), len(split["test"])) == (4, 2)
    predicted = {p["image_id"] for p in json.loads((run / "coco_instances_results.json").read_text())}
    assert predicted == {image["id"] for image in split["test"]}
    assert "Data: " in (run / "log.txt").read_text()
    assert LazyConfig.load(str(run / "config.yaml")).model.roi_heads.num_classes == 6
    again = main(
        arguments(f"train.init_checkpoint={run}/model_final.pth", eval_only=True, config=str(run / "config.yaml"))
    )
    assert again["bbox"]["AP"] == pytest.approx(results["bbox"]["AP"], nan_ok=True)


def test_faults_of_own_data_stop_a_training_before_it_starts(shapes):
    folder, overrides = shapes
    next((folder / "train").iterdir()).unlink()
    opts = [*SMALL, *overrides, *with_test_data(folder), f"train.output_dir={folder}/run"]
    with pytest.raises(UserError, match=r"1 error.*\n.*image file is missing.*\n.*tools/check_data.py --json"):
        main(arguments(*opts))
    assert not (folder / "run").exists()
    cfg = get_config("own_data/elsa_nano_mrcnn", opts)
    assert check_own_data(cfg, "off") == []
    cfg.train.check_data = "off"
    assert check_own_data(cfg) == []
    cfg.train.check_data = "deep"
    with pytest.raises(UserError, match="train.check_data='deep' must be one of off, auto, names, headers, pixels"):
        check_own_data(cfg)


def test_what_is_dropped_is_counted(shapes):
    folder, overrides = shapes
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:2]:
        annotation["bbox"][2] = 0
    path.write_text(json.dumps(content))
    lines = check_own_data(get_config("own_data/elsa_nano_mrcnn", [*overrides, *with_test_data(folder)]))
    assert lines[0].startswith(
        f"{path}: 6 images, 0 of them without objects; {len(content['annotations']) - 2} objects"
    )
    (dropped,) = [line for line in lines if ": dropped: " in line]
    assert dropped.startswith(f"{path}: dropped: zero-area box [")
    assert "(2 of this kind), such as annotation 1 of image 1 (" in dropped
    assert [line for line in lines if line.startswith(f"{folder}/annotations/instances_val.json: 3 images")]


def test_registered_data_are_not_checked():
    assert check_own_data(get_config("coco/elsa_t_mrcnn_1x")) == []


@pytest.fixture
def limited(shapes):
    folder, overrides = shapes
    out = f"train.output_dir={folder}/run"
    cfg = get_config(
        "own_data/elsa_nano_mrcnn", [*overrides, *with_test_data(folder), out, "train.limit_eval_images=2"]
    )
    return limit_evaluation(cfg), cfg


def perfect(entry):
    """The objects of an image as predictions."""
    boxes = torch.tensor([a["bbox"] for a in entry["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    found = Instances((entry["height"], entry["width"]))
    found.pred_boxes = Boxes(boxes)
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor([a["category_id"] for a in entry["annotations"]])
    return {"instances": found}


def test_images_beyond_the_limit_do_not_count_as_missed(limited):
    cfg, whole = limited
    entries = instantiate(cfg.dataloader.test.dataset)
    shown = [image for batch in instantiate(cfg.dataloader.test) for image in batch]
    assert [image["image_id"] for image in shown] == [entry["image_id"] for entry in entries[:2]] == [1, 2]
    scores = {}
    for name, config in (("limited", cfg), ("whole", whole)):
        evaluator = instantiate(config.dataloader.evaluator)
        evaluator.reset()
        for entry in entries[:2]:
            evaluator.process([entry], [perfect(entry)])
        scores[name] = evaluator.evaluate()["bbox"]["AP"]
    assert scores["limited"] == pytest.approx(100)
    assert scores["whole"] < 90
    assert whole.dataloader.evaluator._target_ is not SeenImagesCOCOEvaluator  # the config stays what it was


def test_a_limit_beyond_the_data_is_all_of_them(limited):
    cfg, _ = limited
    cfg.dataloader.test.limit = 100
    assert len(instantiate(cfg.dataloader.test)) == 3


def test_limits_that_cannot_be(limited):
    _, cfg = limited
    for value in (0, -1, True, "ten"):
        cfg.train.limit_eval_images = value
        with pytest.raises(UserError, match="must be a positive number of images, or null"):
            limit_evaluation(cfg)
    with pytest.raises(UserError, match="LVISEvaluator evaluates whole datasets only"):
        limit_evaluation(get_config("lvis/elsa_t_mrcnn_1x", ["train.limit_eval_images=5"]))
    cfg.train.limit_eval_images = None
    assert limit_evaluation(cfg) is cfg


def test_segmentors_are_limited_too():
    cfg = limit_evaluation(get_config("quickstart/elsa_nano_upernet", ["train.limit_eval_images=5"]))
    assert cfg.dataloader.test.limit == 5
    assert cfg.dataloader.evaluator._target_.__name__ == "SemanticEvaluator"
