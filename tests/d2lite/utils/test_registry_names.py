"""Registries and dotted names."""

from __future__ import annotations

import itertools

import pytest
import torch
from d2_access import d2_module

from elsa_det import d2
from elsa_det.d2lite import layers as lite_layers
from elsa_det.d2lite.utils import registry as lite_registry


def test_registry():
    registry = d2_module("utils.registry").Registry("ANIMAL")

    @registry.register()
    class Cat:
        pass

    registry.register(dict)
    assert registry.get("Cat") is Cat
    assert registry.get("dict") is dict
    assert "Dog" not in registry
    with pytest.raises(KeyError, match=r"Dog.*ANIMAL"):
        registry.get("Dog")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch.nn.Conv2d", torch.nn.Conv2d),
        ("torch.optim.sgd.SGD", torch.optim.SGD),
        ("itertools.count", itertools.count),
        ("builtins.dict", dict),
        ("len", len),
        ("detectron2.layers.ShapeSpec", d2.ShapeSpec),
        ("detectron2.layers.shape_spec.ShapeSpec", d2.ShapeSpec),
        ("detectron2.engine.launch", d2.launch),
        ("detectron2.structures.Boxes.cat", d2.Boxes.cat),
    ],
)
def test_locate(name, expected):
    assert d2_module("utils.registry").locate(name) == expected


@pytest.mark.parametrize("name", ["no_such_package.x", "torch.nn.NoSuchLayer", "detectron2.layers.NoSuchLayer"])
def test_locate_nothing(name):
    with pytest.raises(Exception, match=r"NoSuchLayer|no_such_package"):
        d2_module("utils.registry").locate(name)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.nn.Conv2d, "torch.nn.Conv2d"),
        (torch.optim.AdamW, "torch.optim.AdamW"),
        (itertools.count, "itertools.count"),
        (dict, "builtins.dict"),
        (d2.FPN, "detectron2.modeling.FPN"),
        (d2.ShapeSpec, "detectron2.layers.ShapeSpec"),
        (d2.LastLevelMaxPool, "detectron2.modeling.backbone.fpn.LastLevelMaxPool"),
        (d2.WarmupParamScheduler, "detectron2.solver.WarmupParamScheduler"),
        (d2.COCOEvaluator, "detectron2.evaluation.COCOEvaluator"),
        (d2.DatasetMapper, "detectron2.data.DatasetMapper"),
        (d2.Box2BoxTransform, "detectron2.modeling.box_regression.Box2BoxTransform"),
        (d2.ROIPooler, "detectron2.modeling.poolers.ROIPooler"),
        (d2.RPN, "detectron2.modeling.proposal_generator.RPN"),
        (d2.Matcher, "detectron2.modeling.matcher.Matcher"),
        (d2.get_default_optimizer_params, "detectron2.solver.get_default_optimizer_params"),
        (d2.transforms.ResizeShortestEdge, "detectron2.data.transforms.ResizeShortestEdge"),
    ],
)
def test_shortest_name(target, expected):
    assert d2_module("utils.registry")._convert_target_to_string(target) == expected


def test_lite_says_what_it_lacks():
    with pytest.raises(ImportError, match=r"'detectron2\.layers\.NoSuchLayer' is not part of d2lite.*real Detectron2"):
        lite_registry.locate("detectron2.layers.NoSuchLayer")
    assert lite_registry.locate("elsa_det.d2lite.layers.ShapeSpec") is lite_layers.ShapeSpec


def test_an_error_inside_a_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_module_for_locate.py").write_text("import a_library_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_it_needs"):
        lite_registry.locate("broken_module_for_locate.x")
