"""Every config loads, survives saving, and its model takes a step; the recipes hold the recipe's numbers."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from elsa_det import d2, get_config
from elsa_det.config import config_root
from elsa_det.d2 import Boxes, EventStorage, Instances, LazyConfig, PolygonMasks, RetinaNet, instantiate
from elsa_det.d2 import transforms as T
from elsa_det.data import registered_lvis
from elsa_det.modeling import ELSASwin, Swin

NAMES = sorted(
    str(path.relative_to(config_root()))
    for path in config_root().rglob("*.py")
    if "common" not in path.parts and "upernet" not in path.name  # segmentation: test_semantic_configs.py
)
METHODS = ("mrcnn", "cascade")
RCNN = [name for name in NAMES if name.startswith("coco/") and name.split("_")[2] in (*METHODS, "faster")]


def test_the_expected_recipes_exist():
    expected = {
        f"coco/{b}_{s}_{m}_{x}.py" for b in ("elsa", "swin") for s in "tsb" for m in METHODS for x in ("1x", "3x")
    }
    expected |= {f"coco/{b}_t_retinanet_1x.py" for b in ("elsa", "swin")} | {"lvis/elsa_t_mrcnn_1x.py"}
    expected |= {"coco/elsa_t_faster_1x.py", "quickstart/elsa_nano_mrcnn.py", "quickstart/elsa_nano_cascade.py"}
    assert expected <= set(NAMES)


@functools.cache
def saved(name):
    """The text of the config as the provider at work saves it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        LazyConfig.save(get_config(name), str(path))
        return path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_loads_saves_and_reloads(name, tmp_path):
    (tmp_path / "config.yaml").write_text(saved(name))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    first, second = ((tmp_path / f).read_text() for f in ("config.yaml", "again.yaml"))
    assert first == second
    assert "detectron2.modeling.FPN" in first
    assert "d2lite" not in "".join(line for line in first.splitlines() if not line.startswith("#"))


def is_cascade(cfg):
    return "stage_loss_weights" in cfg.model.get("roi_heads", {})


def is_retinanet(cfg):
    return cfg.model._target_ is RetinaNet


def expected_losses(cfg):
    if is_retinanet(cfg):
        return {"loss_cls", "loss_box_reg"}
    heads = cfg.model.roi_heads
    parts = ["cls", "box_reg"] + ["mask"] * (heads.mask_in_features is not None)
    stages = [f"_stage{stage}" for stage in range(3)] if is_cascade(cfg) else [""]
    return {f"loss_{part}{stage}" for part in parts for stage in stages} | {"loss_rpn_cls", "loss_rpn_loc"}


def tiny(cfg):
    """The same structure at a size for tests."""
    backbone = cfg.model.backbone.bottom_up
    backbone.embed_dim, backbone.depths, backbone.num_heads = 12, [1, 1, 1, 1], [1, 2, 3, 4]
    cfg.model.backbone.out_channels = 16
    if is_retinanet(cfg):
        cfg.model.backbone.top_block.in_channels = 8 * backbone.embed_dim
        cfg.model.head.conv_dims = [16]
        return cfg
    box_head, mask_head = cfg.model.roi_heads.box_head, cfg.model.roi_heads.mask_head
    if is_cascade(cfg):  # what the first stage says holds for all
        box_head, mask_head = box_head[0], mask_head[0]
        box_head.conv_dims = [16]
    box_head.fc_dims = [16] * len(box_head.fc_dims)
    mask_head.conv_dims = [16, 16]
    cfg.model.roi_heads.batch_size_per_image = 16
    # LVIS: masks of all classes for each of up to 300 detections
    if instantiate(cfg.model.roi_heads.num_classes) > 1000:
        cfg.model.roi_heads.box_predictor.test_topk_per_image = 20
    return cfg


IMAGE = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def step(model):
    """The losses of a training step on one image."""
    target = Instances((64, 96))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 44.0]]))
    target.gt_classes = torch.tensor([2])
    target.gt_masks = PolygonMasks([[torch.tensor([8.0, 8, 40, 8, 40, 44]).numpy()]])
    with EventStorage():
        return model.train()([{"image": IMAGE, "instances": target, "height": 64, "width": 96}])


@pytest.mark.parametrize("name", NAMES)
def test_model_trains_a_step_and_detects(name):
    torch.manual_seed(0)
    cfg = tiny(get_config(name))
    model = instantiate(cfg.model)
    losses = step(model)
    assert set(losses) == expected_losses(cfg)
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    with torch.no_grad():
        found = model.eval()([{"image": IMAGE, "height": 128, "width": 192}])[0]["instances"]
    assert found.image_size == (128, 192)
    assert len(found) <= 100


@pytest.mark.parametrize("name", RCNN)
def test_recipe(name):
    cfg = get_config(name)
    family, size, method, schedule = Path(name).stem.split("_")
    bottom_up = cfg.model.backbone.bottom_up
    assert bottom_up._target_ is {"elsa": ELSASwin, "swin": Swin}[family]
    assert list(bottom_up.depths) == {"t": [2, 2, 6, 2], "s": [2, 2, 18, 2], "b": [2, 2, 18, 2]}[size]
    assert bottom_up.embed_dim == {"t": 96, "s": 96, "b": 128}[size]
    rates = {("t", "1x"): 0.1, ("t", "3x"): 0.2, ("s", "1x"): 0.2, ("b", "1x"): 0.3}
    expected = 0.0 if (method, size, schedule) == ("cascade", "t", "1x") else rates.get((size, schedule), 0.75)
    assert bottom_up.drop_path_rate == expected
    weights = {"t": "tiny", "s": "small", "b": "base"}[size]
    weights = f"elsa_swin_{weights}" if family == "elsa" else f"swin_{weights}_patch4_window7_224"
    assert cfg.train.init_checkpoint == f"pretrained/{weights}.pth"
    assert is_cascade(cfg) == (method == "cascade")
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


@pytest.mark.parametrize(
    ("name", "bias_decay"),
    [
        ("coco/elsa_t_mrcnn_1x", 0.05),
        ("coco/swin_t_mrcnn_1x", 0.0),
        ("coco/elsa_s_cascade_3x", 0.05),
        ("coco/swin_t_cascade_1x", 0.0),
    ],
)
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
            # the release calls the batch norms of its box heads "bn"
            expected = 0.0 if "norm" in key and not key.startswith("roi_heads.box_head.") else 0.05
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


def test_recipe_of_the_cascade():
    cfg = get_config("coco/elsa_t_cascade_1x")
    rpn = cfg.model.proposal_generator
    assert (rpn.anchor_boundary_thresh, rpn.smooth_l1_beta) == (0, pytest.approx(1 / 9))
    assert (tuple(rpn.pre_nms_topk), tuple(rpn.post_nms_topk)) == ((2000, 1000), (2000, 1000))
    heads = cfg.model.roi_heads
    assert list(heads.stage_loss_weights) == [1, 0.5, 0.25]
    assert [list(matcher.thresholds) for matcher in heads.proposal_matchers] == [[0.5], [0.6], [0.7]]
    spreads = [[1 / weight for weight in predictor.box2box_transform.weights] for predictor in heads.box_predictor]
    expected = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    assert spreads == [pytest.approx(spread) for spread in expected]
    for stage in range(3):
        box_head, predictor, mask_head = (heads[part][stage] for part in ("box_head", "box_predictor", "mask_head"))
        assert (list(box_head.conv_dims), list(box_head.fc_dims)) == ([256] * 4, [1024])
        assert instantiate(box_head.conv_norm) == "BN"
        assert (predictor.num_classes, predictor.get("cls_agnostic_bbox_reg", False)) == (80, False)
        assert (predictor.box_reg_loss_type, predictor.loss_weight.loss_box_reg) == ("giou", 10)
        assert (predictor.test_score_thresh, predictor.test_nms_thresh) == (0.05, 0.5)
        assert (list(mask_head.conv_dims), mask_head.num_classes) == ([256] * 5, 80)
    cfg.model.roi_heads.num_classes = 7
    assert {part[stage].num_classes for part in (heads.box_predictor, heads.mask_head) for stage in range(3)} == {7}


@pytest.mark.parametrize("name", ["coco/elsa_t_mrcnn_1x", "coco/swin_t_cascade_1x"])
def test_one_override_leaves_the_masks_out(name):
    cfg = tiny(get_config(name, ["model.roi_heads.mask_in_features=null"]))
    model = instantiate(cfg.model)
    assert not [key for key in model.state_dict() if "mask" in key]
    assert set(step(model)) == expected_losses(cfg)


def test_faster_rcnn_needs_no_masks_in_the_data():
    mapper = instantiate(get_config("coco/elsa_t_faster_1x").dataloader.train.mapper)
    assert (mapper.use_instance_mask, mapper.recompute_boxes) == (False, False)
    mapper = instantiate(get_config("coco/elsa_t_mrcnn_1x").dataloader.train.mapper)
    assert (mapper.use_instance_mask, mapper.recompute_boxes) == (True, True)


@pytest.mark.parametrize(("name", "backbone"), [("elsa_t_retinanet_1x", ELSASwin), ("swin_t_retinanet_1x", Swin)])
def test_recipe_of_retinanet(name, backbone):
    cfg = get_config(f"coco/{name}", ["model.num_classes=7"])
    bottom_up = cfg.model.backbone.bottom_up
    assert (bottom_up._target_, tuple(bottom_up.out_indices)) == (backbone, (1, 2, 3))
    assert cfg.model.backbone.top_block.in_channels == 8 * bottom_up.embed_dim
    assert cfg.model.head.num_classes == 7
    sizes = cfg.model.anchor_generator.sizes
    assert [size[0] for size in sizes] == [32, 64, 128, 256, 512]
    assert sizes[1] == pytest.approx([64, 80.63495, 101.59367])
    assert cfg.train.init_checkpoint == get_config(f"coco/{name.replace('retinanet', 'mrcnn')}").train.init_checkpoint
    assert cfg.train.output_dir == f"output/{name}"
    mapper = instantiate(cfg.dataloader.train.mapper)
    assert (mapper.use_instance_mask, mapper.recompute_boxes) == (False, False)
    model = instantiate(tiny(cfg).model)
    shapes = model.backbone.output_shape()
    assert [shapes[name].stride for name in model.head_in_features] == list(model.anchor_generator.strides)
    assert model.head.cls_score.out_channels == 9 * 7


def test_recipe_of_lvis():
    cfg = get_config("lvis/elsa_t_mrcnn_1x")
    heads = cfg.model.roi_heads
    assert (heads.num_classes, heads.mask_head.num_classes, heads.box_predictor.num_classes) == (1203, 1203, 1203)
    assert (heads.box_predictor.test_score_thresh, heads.box_predictor.test_topk_per_image) == (1e-4, 300)
    train, test, evaluator = cfg.dataloader.train, cfg.dataloader.test, cfg.dataloader.evaluator
    assert train.sampler.repeat_factors.repeat_thresh == 0.001
    assert (train.dataset.names.name, test.dataset.names.name) == ("lvis_v1_train", "lvis_v1_val")
    assert {loader.dataset.names._target_ for loader in (train, test)} == {registered_lvis}
    assert (evaluator.dataset_name.name, evaluator.max_dets_per_image) == ("lvis_v1_val", 300)
    multiplier = instantiate(cfg.lr_multiplier)
    rate = [multiplier(i / cfg.train.max_iter) for i in (0, 500, 119_999, 120_001, 159_999, 160_001)]
    assert (cfg.train.max_iter, rate) == (180_000, pytest.approx([0.001, 1, 1, 0.1, 0.1, 0.01]))


OTHER = d2.LITE if d2.PROVIDER == d2.UPSTREAM else d2.UPSTREAM
RESAVE = """
import sys
from pathlib import Path
from elsa_det.d2 import PROVIDER, LazyConfig
assert PROVIDER == sys.argv[2], PROVIDER
for path in Path(sys.argv[1]).glob("*.yaml"):
    LazyConfig.save(LazyConfig.load(str(path)), str(path.with_suffix(".again")))
"""


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="needs Detectron2 beside d2lite")
def test_other_provider_reads_what_this_one_saves(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(saved(name))
    command = [sys.executable, "-c", RESAVE, str(tmp_path), OTHER]
    result = subprocess.run(command, env={**os.environ, "ELSA_DET_D2": OTHER}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    def lines(path):
        return [line for line in path.read_text().splitlines() if not line.startswith("#")]

    written = sorted(tmp_path.glob("*.yaml"))
    assert len(written) == len(NAMES)
    for path in written:
        assert lines(path) == lines(path.with_suffix(".again")), path.name


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_device_rule_without_cuda():
    cfg = get_config("coco/elsa_t_mrcnn_1x")
    assert (cfg.train.device, cfg.train.amp.enabled) == ("cpu", False)
    with pytest.raises(ValueError, match="train.device=cuda, but torch .* sees no CUDA device"):
        get_config("coco/elsa_t_mrcnn_1x", ["train.device=cuda"])


def test_unknown_name_lists_the_known():
    with pytest.raises(FileNotFoundError, match="no config 'coco/elsa_x'.*coco/elsa_t_mrcnn_1x.py"):
        get_config("coco/elsa_x")


def test_a_norm_that_is_not_there_is_named():
    cfg = tiny(get_config("coco/elsa_t_cascade_1x", ["optimizer.params.decayed_norms=[roi_heads.bbox_head]"]))
    cfg.optimizer.params.model = instantiate(cfg.model)
    with pytest.raises(ValueError, match=r"decayed_norms.*'roi_heads\.bbox_head'"):
        instantiate(cfg.optimizer)
