"""Every segmentation config loads, survives saving and takes a step; the recipes hold the recipe's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elsa_det import get_config
from elsa_det.config import config_root
from elsa_det.d2 import DatasetCatalog, EventStorage, LazyConfig, MetadataCatalog, instantiate
from elsa_det.engine.training import check_class_count, check_datasets, evaluate
from elsa_det.errors import UserError
from elsa_det.evaluation import CityscapesSemanticEvaluator, SemanticEvaluator
from elsa_det.modeling import ELSASwin, Segmentor, Swin

NAMES = sorted(
    str(path.relative_to(config_root())) for path in config_root().rglob("*upernet*.py") if "common" not in path.parts
)
ADE20K = [name for name in NAMES if name.startswith("ade20k/")]


def test_the_expected_recipes_exist():
    expected = {f"ade20k/{family}_{size}_upernet_160k.py" for family in ("elsa", "swin") for size in "tsb"}
    assert expected | {"cityscapes/elsa_t_upernet_80k.py", "quickstart/elsa_nano_upernet.py"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_loads_saves_and_reloads(name, tmp_path):
    cfg = get_config(name)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    LazyConfig.save(LazyConfig.load(str(tmp_path / "config.yaml")), str(tmp_path / "again.yaml"))
    first, second = ((tmp_path / file).read_text() for file in ("config.yaml", "again.yaml"))
    assert first == second
    assert "detectron2.data.build_detection_train_loader" in first.replace("data.build.build", "data.build")
    assert "d2lite" not in "".join(line for line in first.splitlines() if not line.startswith("#"))


def tiny(cfg):
    """The same structure at a size for tests."""
    backbone = cfg.model.backbone
    backbone.embed_dim, backbone.depths, backbone.num_heads = 12, [1, 1, 1, 1], [1, 2, 3, 4]
    # Two channels in each of 32 groups: a group must have more than one value on the 1 x 1 map of the pooling.
    cfg.model.decode_head.channels = cfg.model.auxiliary_head.channels = 64
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_model_trains_a_step_and_labels(name):
    torch.manual_seed(0)
    cfg = tiny(get_config(name))
    model = instantiate(cfg.model)
    assert isinstance(model, Segmentor)
    assert model.num_classes == cfg.dataset.num_classes
    image = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, model.num_classes, (64, 96))
    labels[:10] = 255
    with EventStorage():
        losses = model.train()([{"image": image, "sem_seg": labels}])
    assert set(losses) == {"loss_sem_seg", "loss_aux"}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        (result,) = model.eval()([{"image": image, "height": 32, "width": 50}])
    assert result["sem_seg_labels"].shape == (32, 50)


@pytest.mark.parametrize("name", ADE20K)
def test_recipe(name):
    cfg = get_config(name)
    family, size = Path(name).stem.split("_")[:2]
    backbone = cfg.model.backbone
    assert backbone._target_ is {"elsa": ELSASwin, "swin": Swin}[family]
    assert list(backbone.depths) == {"t": [2, 2, 6, 2], "s": [2, 2, 18, 2], "b": [2, 2, 18, 2]}[size]
    assert (backbone.embed_dim, backbone.drop_path_rate) == ({"t": 96, "s": 96, "b": 128}[size], 0.3)
    assert (cfg.model.decode_head.channels, cfg.model.auxiliary_head.channels) == (512, 256)
    assert cfg.model.auxiliary_head.loss_weight == 0.4
    assert cfg.train.output_dir == f"output/{Path(name).stem}"
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (160_000, 16)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (6e-5, 0.01)
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(iteration / 160_000) for iteration in (0, 750, 1500, 80_000, 160_000 - 1)]
    top = 1 - 1500 / 160_000
    assert rates == pytest.approx([1e-6, (1e-6 + top) / 2, top, 0.5, 1 / 160_000])
    dataset = cfg.dataset
    assert (dataset.train.name, dataset.test.name) == ("elsa_ade20k_train", "elsa_ade20k_val")
    assert (dataset.num_classes, dataset.ignore_label) == (150, 255)


def test_augmentation_of_the_recipe():
    cfg = get_config("ade20k/elsa_t_upernet_160k")
    steps = [instantiate(step) for step in cfg.dataloader.train.mapper.augmentations]
    assert [type(step).__name__ for step in steps] == [
        "RandomResizeInto", "RandomCrop_CategoryAreaConstraint", "RandomFlip", "PhotometricDistortion", "PadToSize",
    ]  # fmt: skip
    resize, crop, flip, colors, pad = steps
    assert (resize.short, resize.long, resize.ratio) == (512, 2048, (0.5, 2.0))
    assert (tuple(crop.crop_size), crop.single_category_max_area, crop.ignored_category) == ((512, 512), 0.75, 255)
    assert flip.prob == 0.5
    assert (colors.brightness, colors.contrast, colors.saturation, colors.hue) == (32, (0.5, 1.5), (0.5, 1.5), 18)
    assert (pad.size, pad.pixel, pad.label) == ((512, 512), (123.675, 116.28, 103.53), 255)
    (test,) = [instantiate(step) for step in cfg.dataloader.test.mapper.augmentations]
    assert (tuple(test.short_edge_length), test.max_size) == ((512, 512), 2048)


def test_weight_decay_groups():
    for name, bias_decay in (("ade20k/elsa_t_upernet_160k", 0.01), ("ade20k/swin_t_upernet_160k", 0.0)):
        cfg = tiny(get_config(name))
        cfg.optimizer.params.model = model = instantiate(cfg.model)
        groups = instantiate(cfg.optimizer).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        table = next(p for n, p in model.named_parameters() if "relative_position_bias_table" in n)
        assert decay[id(table)] == bias_decay
        assert decay[id(model.decode_head.predictor.weight)] == 0.01


def test_evaluators():
    assert get_config("cityscapes/elsa_t_upernet_80k").dataloader.evaluator._target_ is CityscapesSemanticEvaluator
    assert get_config("ade20k/elsa_t_upernet_160k").dataloader.evaluator._target_ is SemanticEvaluator


@pytest.fixture
def folders(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(2):
        for part, shape in (("images", (40, 56, 3)), ("labels", (40, 56))):
            (tmp_path / part).mkdir(exist_ok=True)
            pixels = generator.integers(0, 256 if len(shape) == 3 else 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{index}.png")
    known = set(DatasetCatalog.list())
    yield [
        f"dataset.{split}.{part}_root={tmp_path}/{part}s" for split in ("train", "test") for part in ("image", "label")
    ]
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_own_folders_from_the_command_line(folders, tmp_path):
    """One place has the number of classes; images smaller than the crop are padded."""
    options = [
        *folders,
        "dataset.num_classes=3",
        "dataset.image_size.crop=[64,64]",
        "dataset.image_size.short=32",
        "dataset.inference.stride=[16,16]",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "train.semantic_modes=[whole,slide,ms]",
        "dataset.inference.ratios=[0.5,1.0]",
        f"train.output_dir={tmp_path}/out",
    ]
    cfg = tiny(get_config("ade20k/elsa_t_upernet_160k", options))
    check_datasets(cfg, ["train", "test"])
    model = instantiate(cfg.model)
    assert model.num_classes == 3
    batch = next(iter(instantiate(cfg.dataloader.train)))
    assert [tuple(entry["image"].shape) for entry in batch] == [(3, 64, 64)] * 2
    assert [tuple(entry["sem_seg"].shape) for entry in batch] == [(64, 64)] * 2
    with EventStorage():
        losses = model.train()(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    results = evaluate(cfg, model.eval())
    assert set(results) == {"sem_seg", "sem_seg_slide", "sem_seg_ms"}
    assert all(0 <= scores["mIoU"] <= 100 for scores in results.values())
    for folder in ("out", "out/inference_slide", "out/inference_ms"):
        assert (tmp_path / folder / "sem_seg_evaluation.json").is_file()
        assert (tmp_path / folder / "sem_seg_confusion.png").is_file()


def test_class_counts_are_compared(folders):
    cfg = get_config(
        "ade20k/elsa_t_upernet_160k", [*folders, "dataset.num_classes=3", "model.decode_head.num_classes=4"]
    )
    with pytest.raises(UserError, match=r"has 3 classes .* the model 4: set model.decode_head.num_classes=3"):
        check_class_count(cfg, "test")


def test_data_must_be_named():
    cfg = get_config("quickstart/elsa_nano_upernet", ["dataset.train.image_root=null", "dataset.train.label_root=null"])
    with pytest.raises(UserError, match="no data is named: set dataset.train.image_root"):
        check_datasets(cfg, ["train"])
