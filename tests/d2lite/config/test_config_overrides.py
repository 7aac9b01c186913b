"""Overrides, and configs as Python-like text."""

from __future__ import annotations

import itertools

import pytest
from omegaconf import OmegaConf

from elsa_det.d2 import LazyCall, LazyConfig


def config():
    return OmegaConf.create({"a": {"b": 1}, "l": [1, 2], "n": None})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"a": {"b": 2}}),
        ("a.b=1e-3", {"a": {"b": 0.001}}),
        ("a.b='1 2'", {"a": {"b": "1 2"}}),
        ("a.b=null", {"a": {"b": None}}),
        ("a.b=[1,x]", {"a": {"b": [1, "x"]}}),
        ("a.b=torch.nn.ReLU", {"a": {"b": "torch.nn.ReLU"}}),
        ("a={c:3}", {"a": {"b": 1, "c": 3}}),
        ("a=5", {"a": 5}),
        ("l.0=7", {"l": [7, 2]}),
        ("n.x=1", {"n": {"x": 1}}),
        ("a.new=1", {"a": {"b": 1, "new": 1}}),
        ("+a.new=1", {"a": {"b": 1, "new": 1}}),
        ("x.y.z=1", {"x": {"y": {"z": 1}}}),
    ],
)
def test_overrides(override, expected):
    before = config()
    after = LazyConfig.apply_overrides(before, [override])
    assert after is before
    assert after == {**config(), **expected}


def test_in_order():
    assert LazyConfig.apply_overrides(config(), ["a.b=2", "a.c=${a.b}", "a.b=3"]).a.c == 3


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("a.b.c=1", KeyError, r"a\.b\.c.*a\.b.* is not a config.*int"),
        ("l.9=1", IndexError, "l"),
        ("~a", NotImplementedError, "elet"),
        ("a", Exception, "'a'"),
        ("a.b=[1", Exception, r"\[1"),
        ("a.b=1,2", ValueError, "."),
        ("l.x=1", (KeyError, ValueError), "'x'"),
    ],
)
def test_wrong_overrides(override, error, message):
    with pytest.raises(error, match=message):
        LazyConfig.apply_overrides(config(), [override])


@pytest.mark.parametrize("override", ["a.b.c=1", "a.b=1,2", "l.x=1", "~l.0", "s.new=1"])
def test_lite_names_the_key(override):
    from elsa_det.d2lite.config import LazyConfig as LiteConfig

    strict = config()
    strict.s = {}
    OmegaConf.set_struct(strict.s, True)
    with pytest.raises(Exception) as caught:
        LiteConfig.apply_overrides(strict, [override])
    assert override.strip("~").partition("=")[0] in str(caught.value)


def test_to_py():
    cfg = OmegaConf.create({"a": {"b": 1, "c": [1, "x"], "d": "${a.b}"}}, flags={"allow_objects": True})
    cfg.k = LazyCall(itertools.count)(start={"r": "a", "t": [1, 2.5]})
    text = LazyConfig.to_py(cfg, prefix="c.").replace(" ", "").replace("'", '"')
    assert text.splitlines() == [
        "c.a.b=1",
        'c.a.c=[1,"x"]',
        "c.a.d=1",
        'c.k=itertools.count(start={"r":"a","t":[1,2.5]})',
    ]
