"""LazyCall and instantiate."""

from __future__ import annotations

import collections
import dataclasses

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from elsa_det.d2 import LazyCall, ShapeSpec, instantiate


class Box:
    def __init__(self, **contents):
        self.contents = contents


@dataclasses.dataclass
class Point:
    x: int = 1
    y: int = 2


def test_a_call_is_written_down():
    call = LazyCall(nn.Conv2d)(in_channels=3, out_channels=4, kernel_size=1)
    assert call == {"_target_": nn.Conv2d, "in_channels": 3, "out_channels": 4, "kernel_size": 1}
    call.out_channels = 8
    assert tuple(instantiate(call).weight.shape) == (8, 3, 1, 1)


@pytest.mark.parametrize("target", [3, None, ["a"]])
def test_what_cannot_be_called(target):
    with pytest.raises(TypeError, match="LazyCall"):
        LazyCall(target)


def test_dataclasses_go_by_name():
    call = LazyCall(ShapeSpec)(channels=3)
    assert call._target_ == "detectron2.layers.ShapeSpec"
    assert instantiate(call) == ShapeSpec(channels=3)


def test_nesting():
    inner = LazyCall(Box)(a=1)
    outer = instantiate(LazyCall(Box)(child=inner, many=[inner, 2, {"in_a_dict": inner}], number="${child.a}"))
    contents = outer.contents
    assert contents["child"].contents == {"a": 1}
    assert contents["number"] == 1
    assert isinstance(contents["many"], ListConfig)
    assert contents["many"][0].contents == {"a": 1}
    assert contents["many"][2].in_a_dict._target_ is Box  # a dict that is no call stays a config


def test_plain_containers():
    assert instantiate({"_target_": "collections.Counter", "a": 2}) == collections.Counter(a=2)
    assert instantiate([{"_target_": dict, "a": 1}, 5]) == [{"a": 1}, 5]
    assert instantiate({"a": 1}) == {"a": 1}
    assert instantiate("text") == "text"


def test_target_may_be_a_call():
    make = LazyCall("functools.partial")
    partial = DictConfig({"_target_": make(), "a": 1}, flags={"allow_objects": True})
    with pytest.raises(TypeError):
        instantiate(partial)
    assert instantiate(OmegaConf.create({"_target_": "builtins.dict", "b": 2})) == {"b": 2}


def test_dataclass_configs():
    assert instantiate(OmegaConf.structured(Point(x=5))) == Point(5, 2)


def test_errors(caplog):
    with pytest.raises(Exception, match="no_such_module"):
        instantiate({"_target_": "no_such_module.f"})
    with pytest.raises((TypeError, AssertionError), match="_target_"):
        instantiate({"_target_": 3})
    with pytest.raises(TypeError, match="unknown"):
        instantiate({"_target_": nn.ReLU, "unknown": 1})
    assert "Error when instantiating torch.nn.modules.activation.ReLU" in caplog.text
