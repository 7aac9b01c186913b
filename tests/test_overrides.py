"""Overrides of the command line: every key and type is checked."""

from __future__ import annotations

import pytest

from elsa_det.config import get_config
from elsa_det.errors import UserError
from elsa_det.overrides import apply_overrides


@pytest.fixture
def cfg():
    return get_config("coco/elsa_t_mrcnn_1x.py")


def test_values_are_set(cfg):
    apply_overrides(
        cfg,
        [
            "train.max_iter=10",
            "optimizer.lr=1",
            "train.init_checkpoint=none",
            "dataset.train.json_file=a.json",
            "dataset.image_size.train=[64,96]",
            "model.proposal_generator.anchor_generator.sizes.0=[16]",
            "train.amp.enabled=false",
            "train.clip_grad_norm=0.1",
            "model.backbone.in_features=p0",
        ],
    )
    assert cfg.train.max_iter == 10
    assert cfg.optimizer.lr == 1
    assert cfg.dataset.image_size.train == [64, 96]
    assert cfg.dataloader.train.mapper.augmentations[1].choices[0][0].short_edge_length == [64, 96]
    assert cfg.model.proposal_generator.anchor_generator.sizes[0] == [16]
    assert cfg.train.amp.enabled is False
    assert cfg.train.clip_grad_norm == 0.1


def test_arguments_that_the_config_leaves_to_their_defaults_can_be_set(cfg):
    apply_overrides(
        cfg, ["model.backbone.bottom_up.frozen_stages=2", "model.roi_heads.box_predictor.test_nms_thresh=0.6"]
    )
    assert cfg.model.backbone.bottom_up.frozen_stages == 2
    assert cfg.model.roi_heads.box_predictor.test_nms_thresh == 0.6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itre=5", r"no key train\.max_itre.*Did you mean train\.max_iter\?"),
        ("optimiser.lr=1", r"no key optimiser\.lr.*Did you mean optimizer\?"),
        ("model.backbone.bottom_up.drop_path=0.1", r"Did you mean model\.backbone\.bottom_up\.drop_path_rate"),
        ("train.zzz=5", r"train has: .*amp"),
        ("train.max_iter=ten", r"train\.max_iter is a whole number; 'ten' is text"),
        ("train.max_iter=1e5", r"write train\.max_iter=100000"),
        ("train.amp.enabled=1", r"train\.amp\.enabled is true or false; 1 is a whole number"),
        ("train.amp=true", r"train\.amp is a group of keys"),
        ("dataset.image_size.train=512", r"dataset\.image_size\.train is a list; 512 is a whole number"),
        ("dataset.image_size.train.99=512", r"is a list of 11"),
        ("train.max_iter.x=1", r"train\.max_iter is a whole number, so it has no 'x'"),
        ("train.clip_grad_norm.max=1", r"train\.clip_grad_norm is null"),
        ("train.max_iter=1,2", r"choice of values: write a list as train\.max_iter=\[a,b\]"),
        ("~train.max_iter", r"set train\.max_iter=null"),
        ("train.max_iter", r"is not understood: write key=value"),
        ("train.output_dir=a b(", r"is not understood"),
    ],
)
def test_what_does_not_fit_is_named(cfg, override, message):
    with pytest.raises(UserError, match=message):
        apply_overrides(cfg, [override])


def test_a_plus_adds_any_key(cfg):
    apply_overrides(cfg, ["+train.note=first", "+extra.a=1"])
    assert cfg.train.note == "first"
    assert cfg.extra.a == 1
