"""RetinaNet, and training on LVIS, through the main command's function: a few steps on data made for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lvis_files import IMAGES, SIZE, needs_lvis, write_lvis
from PIL import Image

from elsa_det import get_config
from elsa_det.config import config_root
from elsa_det.d2 import DatasetCatalog, MetadataCatalog, default_argument_parser, instantiate
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.engine.training import main
from elsa_det.errors import UserError

SMALL = [
    "model.backbone.bottom_up.embed_dim=12",
    "model.backbone.bottom_up.depths=[1,1,1,1]",
    "model.backbone.bottom_up.num_heads=[1,2,3,4]",
    "model.backbone.out_channels=16",
    "dataset.image_size.train=[64]",
    "dataset.image_size.before_crop=[64]",
    "dataset.image_size.crop=[48,64]",
    "dataset.image_size.test=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.init_checkpoint=none",
    "train.max_iter=2",
    "train.eval_period=2",
    "train.log_period=1",
    "train.seed=3",
]


def run(name: str, *overrides: str):
    config = str(Path(config_root()) / f"{name}.py")
    return main(default_argument_parser().parse_args(["--config-file", config, *SMALL, *overrides]))


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_retinanet_trains_and_is_evaluated(tmp_path):
    write_shapes(tmp_path / "data", SetSpec(train=4, val=2, scene=SceneSpec(image_size=64, max_object=40)))
    data = overrides_for(tmp_path / "data")
    sizes = ["model.backbone.top_block.in_channels=96", "model.head.conv_dims=[16]"]
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"has 6 classes .* the model 80: set model.num_classes=6"):
        run("coco/elsa_t_retinanet_1x", *data, *sizes, f"train.output_dir={tmp_path}/refused")
    results = run("coco/elsa_t_retinanet_1x", *data, *sizes, f"train.output_dir={out}", "model.num_classes=6")
    assert list(results) == ["bbox"]
    assert (out / "model_final.pth").exists()
    steps = [line for line in logged(out) if "total_loss" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["total_loss"] == pytest.approx(line["loss_cls"] + line["loss_box_reg"])
        assert line["num_pos_anchors"] > 0


@pytest.fixture
def lvis_data(tmp_path):
    """The made-up set, with its images."""
    drawn = np.random.default_rng(0)
    for number in IMAGES:
        folder = tmp_path / f"{'train' if number == 11 else 'val'}2017"
        folder.mkdir(exist_ok=True)
        pixels = drawn.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:012d}.jpg")
    json_file = write_lvis(tmp_path)
    yield [
        f"dataset.{split}.{what}={place}"
        for split in ("train", "test")
        for what, place in (("json_file", json_file), ("image_root", tmp_path))
    ]
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(json_file, None)


LVIS_SIZES = [
    "model.roi_heads.box_head.fc_dims=[16,16]",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "model.proposal_generator.post_nms_topk=[20,20]",
]


@needs_lvis
def test_lvis_is_trained_and_evaluated(lvis_data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"has 4 classes \(apple, .* the model 1203: set model.roi_heads.num_classes=4"):
        run("lvis/elsa_t_mrcnn_1x", *lvis_data, *LVIS_SIZES, f"train.output_dir={tmp_path}/refused")
    results = run(
        "lvis/elsa_t_mrcnn_1x", *lvis_data, *LVIS_SIZES, f"train.output_dir={out}", "model.roi_heads.num_classes=4"
    )
    assert list(results) == ["bbox", "segm"]
    assert list(results["segm"])[-3:] == ["APr", "APc", "APf"]
    found = json.loads((out / "lvis_instances_results.json").read_text())
    assert {one["category_id"] for one in found} <= {1, 2, 3, 4}
    assert max(sum(one["image_id"] == number for one in found) for number in IMAGES) <= 300
    assert "bbox/APr" in logged(out)[-1]


@needs_lvis
def test_rare_classes_are_repeated(lvis_data):
    cfg = get_config("lvis/elsa_t_mrcnn_1x", lvis_data)
    cfg.dataloader.train.sampler.repeat_factors.repeat_thresh = 1.0
    # Of the three images with objects the apple is in two, the bow in two, the cup in one.
    factors = instantiate(cfg.dataloader.train.sampler.repeat_factors)
    assert factors.tolist() == pytest.approx([3**0.5, 1.5**0.5, 1.5**0.5])
