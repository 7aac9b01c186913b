"""Configs that are data call nothing but what is harmless or trusted by the user, with either provider."""

from __future__ import annotations

import sys

import pytest
from omegaconf import OmegaConf

from elsa_det import d2
from elsa_det.config import load_config
from elsa_det.config_targets import calls_in, check_calls
from elsa_det.engine import Predictor
from elsa_det.errors import UserError

GOOD = """\
model: {_target_: detectron2.modeling.FPN, norm: !!python/name:torch.nn.modules.normalization.LayerNorm ''}
spec: !!python/object:detectron2.layers.ShapeSpec {channels: 3, height: null, stride: null, width: null}
optimizer: {_target_: torch.optim.AdamW, lr: 0.1, params: {_target_: detectron2.solver.get_default_optimizer_params}}
train: {max_iter: 3, device: cpu, decay: 0.5, half: '${train.decay}'}
"""


@pytest.fixture
def saved(tmp_path):
    def write(text: str):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_a_saved_config_is_read_as_the_provider_would(saved):
    path = saved(GOOD)
    ours, theirs = load_config(path, ["train.max_iter=4"]), d2.LazyConfig.load(str(path))
    assert ours.train.max_iter == 4
    assert OmegaConf.to_container(ours.spec) == OmegaConf.to_container(theirs.spec)
    assert type(OmegaConf.to_object(ours)["spec"]) is d2.ShapeSpec
    for part in ("model", "optimizer"):
        assert ours[part] == theirs[part]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a: {_target_: os.system, command: x}", r"a\._target_: 'os\.system' is not among.*ELSA_DET_TRUST=os"),
        ("a: {b: [1, {c: {_target_: subprocess.Popen, args: x}}]}", r"a\.b\.1\.c\._target_: 'subprocess\.Popen'"),
        ("a: {_target_: builtins.eval}", "this builtin"),
        ("a: {_target_: antigravity.geohash}", "'antigravity.geohash' is not among"),
        ("a: {_target_: torch.hub.load}", "ELSA_DET_TRUST=torch"),
        ("a: {_target_: detectron2.config.LazyConfig.load}", "is not among"),
        ("a: {_target_: torch.nn.modules.module.torch.load}", "'torch.serialization.load' is not among"),
        ("a: {_target_: elsa_det.data.lvis.importlib.util.find_spec}", "'importlib.util.find_spec' is not among"),
        ("a: {_target_: torch.nn.Module._apply}", "is private"),
        ("a: {_target_: torch.nn}", "is not a function or class"),
        ("a: {_target_: '${b}'}\nb: os.system", r"a\._target_: 'os\.system'"),
        ("a: {_target_: '${b}.system'}\nb: os", r"a\._target_: 'os\.system'"),
        ("a: {_target_: '${b}'}", r"a\._target_ cannot be told"),
        ("a: {_target_: {_target_: os.getcwd}}", r"a\._target_\._target_: 'os\.getcwd'"),
        ("a: {_target_: 3}", "'3' is no name of a class"),
        ("a: '${oc.create:\"{_target_: os.system}\"}'", "is not the place of another value"),
        ("a: '${oc.${b}:x}'\nb: decode", "is not the place of another value"),
        ("a: !!python/object/apply:os.system [x]", "calls in a config are not made"),
        ("a: !!python/object/new:os.system [x]", "could not determine a constructor"),
        ("a: !!python/name:torch.load ''", "torch.serialization.load' is not among"),
        ("a: !!python/object/apply:detectron2.layers.ShapeSpec []", "calls in a config are not made"),
        ("train: x", "train is 'x', and must be a group of keys"),
        ("train: {amp: 3}", "train.amp is '3'"),
        ("train: '${model}'", "Interpolation key 'model' not found"),
        ("a: 0x" + "f" * 5000, "whole number of 20000 bits"),
        ("- 1", "no mapping of keys"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: &a {<<: *a}", "refers to itself"),
        ("a: 2000-13-01", "month must be in"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_a_saved_config_that_calls_something_else_is_refused(saved, line, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(saved(line))
    assert "config.yaml" in str(caught.value) or line.startswith("train: ")
    assert "antigravity" not in sys.modules  # it opens a browser when it is imported


@pytest.mark.parametrize(
    "override", ["a._target_=os.system", "+x={b: [{_target_: builtins.eval}]}", "+x=${oc.create:b}"]
)
def test_overrides_call_nothing_else_either(saved, tmp_path, override):
    script = tmp_path / "leaf.py"
    script.write_text(
        "import collections\nfrom elsa_det.d2 import LazyCall as L\n"
        "a = L(collections.Counter)()\nb = dict(c='${oc.env:HOME}', d='${oc.decode:x}')\n"
    )
    for path in (script, saved("a: {_target_: torch.nn.Identity}")):
        with pytest.raises(UserError, match=r"override .*(os\.system|this builtin|the place of another value)"):
            load_config(path, [override])
    cfg = load_config(script, ["b.c=x", "+e={_target_: collections.Counter}"])  # what the program calls, it may
    assert cfg.a._target_ == "collections.Counter" or cfg.a._target_.__name__ == "Counter"
    with pytest.raises(UserError, match="overrides: a._target_: 'os.system'"):
        Predictor(cfg, overrides=["a._target_=os.system"])


def test_packages_of_the_users_own_are_allowed_by_the_environment(saved, monkeypatch):
    path = saved("a: {_target_: collections.Counter}\nb: !!python/name:itertools.count ''")
    with pytest.raises(UserError, match="ELSA_DET_TRUST=itertools"):
        load_config(path)
    monkeypatch.setenv("ELSA_DET_TRUST", "paths, collections ,itertools")
    assert d2.instantiate(load_config(path).a) == {}
    with pytest.raises(UserError, match="'sys.exit' is not among"):  # what a package has imported is not its own
        load_config(saved("a: {_target_: collections._sys.exit}"))


def test_what_a_program_calls_needs_no_look():
    cfg = OmegaConf.create({"a": {"_target_": "os.getcwd"}, "b": "${oc.decode:x}"})
    check_calls(cfg, "x", calls_in(cfg))
    with pytest.raises(UserError, match="os.getcwd"):
        check_calls(cfg, "x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("b.0.\udcff=1", "is not understood|does not fit"),
        ("train.x=${", "is not understood|does not fit"),
        ("+train.max_iter.x=1", "does not fit the config"),
    ],
)
def test_overrides_that_cannot_be_are_named(override, message):
    from elsa_det.overrides import apply_overrides

    with pytest.raises(UserError, match=message):
        apply_overrides(OmegaConf.create({"b": [1], "train": {"max_iter": 1, "x": 1}}), [override])
