"""Every config loads, survives saving, and its model takes a step; the recipes hold the recipe's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elsa_det import get_config
from elsa_det.config import config_root
from elsa_det.d2 import Boxes, EventStorage, Instances, LazyConfig, PolygonMasks, instantiate
from elsa_det.d2 import transforms as T
from elsa_det.modeling import ELSASwin, Swin

NAMES = sorted(
    str(path.relative_to(config_root())) for path in config_root().rglob("*.py") if "common" not in path.parts
)
COCO = [name for name in NAMES if name.startswith("coco/")]


def test_the_expected_recipes_exist():
    expected = {f"coco/{b}_{s}_mrcnn_{x}.py" for b in ("elsa", "swin") for s in "ts" for x in ("1x", "3x")}
    assert expected | {"quickstart/elsa_nano_mrcnn.py"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_loads_saves_and_reloads(name, tmp_path):
    cfg = get_config(name)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    first, second = ((tmp_path / f).read_text() for f in ("config.yaml", "again.yaml"))
    assert first == second
    assert "detectron2.modeling.FPN" in first
    assert "d2lite" not in "".join(line for line in first.splitlines() if not line.startswith("#"))


def tiny(cfg):
    """The same structure at a size for tests."""
    backbone = cfg.model.backbone.bottom_up
    backbone.embed_dim, backbone.depths, backbone.num_heads = 12, [1, 1, 1, 1], [1, 2, 3, 4]
    cfg.model.backbone.out_channels = 16
    cfg.model.roi_heads.box_head.fc_dims = [16, 16]
    cfg.model.roi_heads.mask_head.conv_dims = [16, 16]
    cfg.model.roi_heads.batch_size_per_image = 16
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_model_trains_a_step_and_detects(name):
    torch.manual_seed(0)
    cfg = tiny(get_config(name))
    model = instantiate(cfg.model)
    target = Instances((64, 96))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 44.0]]))
    target.gt_classes = torch.tensor([2])
    target.gt_masks = PolygonMasks([[torch.tensor([8.0, 8, 40, 8, 40, 44]).numpy()]])
    image = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    with EventStorage():
        losses = model.train()([{"image": image, "instances": target, "height": 64, "width": 96}])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    with torch.no_grad():
        found = model.eval()([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert found.image_size == (128, 192)
    assert len(found) <= 100


@pytest.mark.parametrize("name", COCO)
def test_recipe(name):
    cfg = get_config(name)
    family, size, _, schedule = Path(name).stem.split("_")
    bottom_up = cfg.model.backbone.bottom_up
    assert bottom_up._target_ is {"elsa": ELSASwin, "swin": Swin}[family]
    assert list(bottom_up.depths) == {"t": [2, 2, 6, 2], "s": [2, 2, 18, 2]}[size]
    rates = {("t", "1x"): 0.1, ("t", "3x"): 0.2, ("s", "1x"): 0.2, ("s", "3x"): 0.75}
    assert bottom_up.drop_path_rate == rates[size, schedule]
    assert cfg.train.max_iter == {"1x": 87_960, "3x": 263_880}[schedule]
    assert cfg.train.output_dir == f"output/{Path(name).stem}"
    assert cfg.dataloader.train.total_batch_size == 16
    multiplier = instantiate(cfg.lr_multiplier)
    steps = {"1x": (8, 11), "3x": (27, 33)}[schedule]
    rate = [multiplier((epoch * 7330 + offset) / cfg.train.max_iter) for epoch in steps for offset in (-1, 1)]
    assert rate == pytest.approx([1, 0.1, 0.1, 0.01])
    assert multiplier(0) == pytest.approx(0.001)
    assert multiplier(250 / cfg.train.max_iter) == pytest.approx(0.5005)
    assert multiplier(500 / cfg.train.max_iter) == pytest.approx(1)


@pytest.mark.parametrize(("name", "bias_decay"), [("coco/elsa_t_mrcnn_1x", 0.05), ("coco/swin_t_mrcnn_1x", 0.0)])
def test_weight_decay_groups(name, bias_decay):
    cfg = tiny(get_config(name))
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}
    for key, parameter in model.named_parameters():
        if "relative_position_bias_table" in key:
            expected = bias_decay
        else:
            expected = 0.0 if "norm" in key else 0.05
        assert decay[id(parameter)] == expected, key


def test_augmentation_of_the_paper():
    flip, one_of = instantiate(get_config("coco/elsa_t_mrcnn_1x").dataloader.train.mapper).augmentations.augs
    assert isinstance(flip, T.RandomFlip)
    plain, cropped = one_of.choices
    assert [type(a).__name__ for a in cropped.augs] == ["ResizeShortestEdge", "RandomCrop", "ResizeShortestEdge"]
    assert tuple(plain.augs[0].short_edge_length) == tuple(range(480, 801, 32))
    assert tuple(cropped.augs[0].short_edge_length) == (400, 500, 600)
    assert (cropped.augs[1].crop_type, tuple(cropped.augs[1].crop_size)) == ("absolute_range", (384, 600))


def test_one_place_sets_the_classes_and_one_the_data():
    cfg = get_config(
        "coco/elsa_t_mrcnn_1x",
        ["model.roi_heads.num_classes=5", "dataset.train.json_file=a.json", "dataset.train.image_root=b"],
    )
    assert cfg.model.roi_heads.box_predictor.num_classes == 5
    assert cfg.model.roi_heads.mask_head.num_classes == 5
    assert cfg.dataloader.train.dataset.names.json_file == "a.json"
    assert cfg.dataloader.test.dataset.names.name == cfg.dataloader.evaluator.dataset_name.name == "coco_2017_val"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_device_rule_without_cuda():
    cfg = get_config("coco/elsa_t_mrcnn_1x")
    assert (cfg.train.device, cfg.train.amp.enabled) == ("cpu", False)
    with pytest.raises(ValueError, match="train.device=cuda, but torch .* sees no CUDA device"):
        get_config("coco/elsa_t_mrcnn_1x", ["train.device=cuda"])


def test_unknown_name_lists_the_known():
    with pytest.raises(FileNotFoundError, match="no config 'coco/elsa_x'.*coco/elsa_t_mrcnn_1x.py"):
        get_config("coco/elsa_x")
