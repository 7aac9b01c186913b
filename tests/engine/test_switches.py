"""Switches are off by default, set in one place, and refused where they contradict one another."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from omegaconf import OmegaConf

from elsa_det import get_config
from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import LazyConfig
from elsa_det.d2 import transforms as T
from elsa_det.data import OneOf
from elsa_det.engine.switches import BestOptions, EMAOptions, StoppingOptions, check_layer_decay, read_switches
from elsa_det.errors import UserError

BASE = "coco/elsa_t_mrcnn_1x"
COPY_PASTE = "dataloader.train._target_=elsa_det.data.build_copy_paste_train_loader"


@functools.cache
def loaded(name):
    return get_config(name)


def config(name, *overrides):
    """As get_config, but loaded once."""
    return LazyConfig.apply_overrides(copy.deepcopy(loaded(name)), list(overrides))


def switches(*overrides, base=BASE):
    return read_switches(config(base, *overrides))


def test_off_by_default():
    found = switches()
    assert (found.accumulate, found.clip_grad_norm) == (1, None)
    assert (found.ema, found.best, found.early_stopping) == (EMAOptions(), BestOptions(), StoppingOptions())
    assert (found.ema.enabled, found.best.metric, found.early_stopping.metric) == (False, None, None)
    assert found.describe() == []


def test_configs_from_before_the_switches_still_train():
    cfg = config(BASE)
    for key in ("accumulate", "ema", "best", "early_stopping", "clip_grad_norm"):
        cfg.train.pop(key)
    assert read_switches(cfg) == switches()
    assert switches("train.best=null", "train.ema=null") == switches()


#: what each example differs in from the recipe it starts from
EXAMPLES = {
    "gradient_accumulation": ("coco/elsa_t_mrcnn_1x", {"train.accumulate": 4}),
    "ema": ("coco/elsa_t_mrcnn_1x", {"train.ema.enabled": True}),
    "gradient_clipping": ("coco/elsa_t_mrcnn_1x", {"train.clip_grad_norm": 1.0}),
    "keep_best": ("coco/elsa_t_mrcnn_1x", {"train.best.metric": "segm/AP"}),
    "early_stopping": (
        "coco/elsa_t_mrcnn_3x",
        {
            "train.eval_period": 7330,
            "train.early_stopping.metric": "bbox/AP",
            "train.early_stopping.patience": 4,
            "train.early_stopping.min_delta": 0.1,
        },
    ),
    "layer_decay": (
        "coco/elsa_t_mrcnn_1x",
        {
            "optimizer.params.lr_factor_func._target_": "SwinLayerDecay",
            "optimizer.params.lr_factor_func.decay": 0.8,
            "optimizer.params.lr_factor_func.depths": "${model.backbone.bottom_up.depths}",
        },
    ),
}


def flat(node, path=""):
    if isinstance(node, dict):
        return {
            k: v for name, value in node.items() for k, v in flat(value, f"{path}.{name}" if path else name).items()
        }
    return {path: getattr(node, "__name__", node)}


def values(name):
    return flat(OmegaConf.to_container(config(name), resolve=False))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_only_what_differs(name):
    base, expected = EXAMPLES[name]
    before, after = values(base), values(f"examples/{name}")
    different = {key: value for key, value in after.items() if key not in before or before[key] != value}
    assert different == {**expected, "train.output_dir": f"output/{name}"}
    assert set(before) <= set(after)


@pytest.mark.parametrize("name", [*EXAMPLES, "large_scale_jitter", "copy_paste"])
def test_examples_are_read_also_when_reloaded(name, tmp_path):
    cfg = config(f"examples/{name}")
    found = read_switches(cfg)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert read_switches(LazyConfig.load(str(tmp_path / "config.yaml"))) == found
    assert (len(found.describe()) == 1) == (name not in ("layer_decay", "large_scale_jitter", "copy_paste"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.accumulate=0"], "train.accumulate=0 must be a whole number"),
        (["train.accumulate=2.5"], "train.accumulate=2.5 must be a whole number"),
        (["train.accumulate=3"], "total_batch_size=16 does not divide into 3 passes .* make it a multiple of 3"),
        (["train.accumulate=2", "dataloader.train.total_batch_size=null"], "which the config has not"),
        (["train.clip_grad_norm=0"], "train.clip_grad_norm=0 must be a positive norm"),
        (["train.ema.enabled=True", "train.ema.decay=1.0"], "train.ema.decay=1.0 must be between 0 and 1"),
        (["train.ema.enabled=True", "train.ema.evaluate=all"], "must be 'both', 'ema' or 'raw'"),
        (["train.ema.enable=True"], "train.ema has no option 'enable': did you mean enabled"),
        (["train.ema=True"], "train.ema=True must be options, such as train.ema.enabled"),
        (["train.best.metric=bbox/AP", "train.best.mode=higher"], "train.best.mode='higher' must be 'max' or 'min'"),
        (["train.best.metric=bbox/AP", "train.eval_period=0"], "train.eval_period=0 makes none"),
        (["train.best.metric=bbox/ap"], "train.best.metric=bbox/ap: .*did you mean bbox/AP"),
        (["train.best.metric=box/AP50"], "no metric 'box/AP50'; did you mean bbox/AP50"),
        (["train.best.metric=7"], "train.best.metric=7 must be the name of a metric"),
        (["train.best.metric=bbox_EMA/AP"], "with train.ema.enabled=False there is bbox/AP only"),
        (
            ["train.best.metric=bbox/AP", "train.ema.enabled=True", "train.ema.evaluate=ema"],
            "with train.ema.evaluate=ema there is bbox_EMA/AP only",
        ),
        (["train.early_stopping.metric=bbox_TTA/AP"], "no metric 'bbox_TTA/AP'"),
        (["train.early_stopping.metric=bbox/AP", "train.early_stopping.patience=0"], "patience=0 must be at least 1"),
        (
            ["train.early_stopping.metric=bbox/AP", "train.early_stopping.min_delta=-1"],
            "min_delta=-1 must be at least 0",
        ),
        (
            ["train.early_stopping.metric=bbox/AP", "train.early_stopping.patience=20"],
            "can never stop this run: .*iteration 105000 at the earliest, and train.max_iter is 87960",
        ),
        ([COPY_PASTE, "dataloader.train.mapper.use_instance_mask=False"], "copy-paste needs masks"),
        ([COPY_PASTE, "dataloader.train.copy_paste.prob=2"], r"copy_paste.prob must be in \[0, 1\], got 2"),
        ([COPY_PASTE, "dataloader.train.copy_paste.min_visible=1"], r"min_visible must be in \[0, 1\), got 1"),
        ([COPY_PASTE, "dataloader.train.copy_paste.blend=1"], "no option blend; there are: prob, min_visible"),
        (["dataloader.train.copy_paste.prob=0.5"], "the loader does not paste: set dataloader.train._target_"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        switches(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.best.metric=segm/AP-disc"],
        ["train.best.metric=bbox_EMA/AP", "train.ema.enabled=True"],
        ["train.best.metric=bbox_TTA/AP", "train.tta.enabled=True"],
        ["train.best.metric=bbox_TTA_EMA/AP", "train.tta.enabled=True", "train.ema.enabled=True"],
        ["train.accumulate=16"],
        [COPY_PASTE],
    ],
)
def test_what_fits_together_is_accepted(overrides):
    switches(*overrides)


def test_evaluations_need_an_evaluator():
    cfg = config(BASE, "train.best.metric=bbox/AP")
    cfg.dataloader.pop("evaluator")
    with pytest.raises(UserError, match=r"it lacks dataloader.evaluator"):
        read_switches(cfg)


def lsj(*more):
    cfg = config("examples/large_scale_jitter")
    cfg.dataloader.train.mapper.augmentations.extend(more)
    return cfg


def test_nothing_resizes_after_large_scale_jittering():
    resize = L(T.ResizeShortestEdge)(short_edge_length=[64], max_size=90)
    jitter = list(lsj().dataloader.train.mapper.augmentations)
    with pytest.raises(UserError, match="ResizeShortestEdge after ResizeScale undoes large-scale jittering"):
        read_switches(lsj(resize))
    with pytest.raises(UserError, match="ResizeShortestEdge after ResizeScale"):
        read_switches(lsj(L(OneOf)(choices=[[], [resize]])))
    cfg = lsj()
    either = L(OneOf)(choices=[jitter, [resize]])
    cfg.dataloader.train.mapper.augmentations = [either]
    read_switches(cfg)
    cfg.dataloader.train.mapper.augmentations = [either, resize]
    with pytest.raises(UserError, match="ResizeShortestEdge after ResizeScale"):
        read_switches(cfg)


def test_layer_decay_needs_stages():
    cfg = config("examples/layer_decay")
    with pytest.raises(UserError, match="no parameter of the model is one of a stage's block"):
        check_layer_decay(cfg, torch.nn.Linear(1, 1))
    cfg.model.backbone.bottom_up.pop("depths")
    with pytest.raises(
        UserError, match="needs a backbone with stages; optimizer.params.lr_factor_func cannot be resolved"
    ):
        read_switches(cfg)
    with pytest.raises(UserError, match=r"in \(0, 1\], got 0"):
        switches("optimizer.params.lr_factor_func.decay=0", base="examples/layer_decay")
    with pytest.raises(UserError, match="multiplies optimizer.params.base_lr"):
        switches("optimizer.params.base_lr=null", base="examples/layer_decay")
