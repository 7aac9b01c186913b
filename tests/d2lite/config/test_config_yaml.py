"""Saved configs, which go from provider to provider."""

from __future__ import annotations

import collections
import functools
import itertools
import pathlib

import numpy as np
import pytest
import torch
import yaml
from d2_access import d2_module
from omegaconf import DictConfig, OmegaConf
from torch import nn

from elsa_det import d2
from elsa_det.d2 import LazyCall, LazyConfig, ShapeSpec, instantiate
from elsa_det.d2lite.config import LazyConfig as LiteConfig
from elsa_det.d2lite.config import yaml_io
from elsa_det.d2lite.layers import ShapeSpec as LiteShapeSpec


def config_of(**values):
    return DictConfig(values, flags={"allow_objects": True})


def values():
    return config_of(
        neck=LazyCall(d2.FPN)(top=LazyCall(d2.LastLevelMaxPool)(), shape=ShapeSpec(channels=3), dim="${depth}"),
        spec=LazyCall(ShapeSpec)(stride=4),
        count=LazyCall(itertools.count)(start=1),
        act=nn.ReLU,
        relu=torch.nn.functional.relu,
        gelu=torch.nn.functional.gelu,
        sigmoid=torch.sigmoid,
        norm=functools.partial(nn.LayerNorm, eps=1e-6),
        get_norm=d2.get_norm,
        mode=d2.BoxMode.XYWH_ABS,
        path=pathlib.Path("/x/y"),
        pairs=collections.OrderedDict(a=1),
        box=[(1, 2), {"q": {1: 2}}],
        length=len,
        depth=50,
        rate=1e-5,
        nothing=None,
        text="Ünïcödé: - #",
    )


def test_round_trip(tmp_path):
    path = str(tmp_path / "config.yaml")
    saved = values()
    LazyConfig.save(saved, path)
    assert saved.count._target_ is itertools.count  # saving changes nothing
    text = pathlib.Path(path).read_text(encoding="utf-8")
    assert "elsa_det.d2lite." not in text
    for target in ("modeling.FPN", "modeling.backbone.fpn.LastLevelMaxPool", "layers.ShapeSpec"):
        assert f"_target_: detectron2.{target}" in text
    assert "dim: ${depth}" in text

    loaded = LazyConfig.load(path)
    assert loaded.neck._target_ == "detectron2.modeling.FPN"
    assert loaded.neck.dim == 50
    assert instantiate(loaded.neck.shape) == ShapeSpec(channels=3)
    assert instantiate(loaded.spec) == ShapeSpec(stride=4)
    assert isinstance(instantiate(loaded.neck.top), d2.LastLevelMaxPool)
    assert next(instantiate(loaded.count)) == 1
    assert loaded.norm(4).eps == 1e-6
    for name in ("act", "relu", "gelu", "sigmoid", "get_norm", "length", "mode", "path", "depth", "rate", "nothing"):
        assert loaded[name] == saved[name], name
    assert loaded.box == [[1, 2], {"q": {1: 2}}]
    assert loaded.pairs == {"a": 1}
    assert loaded.text == "Ünïcödé: - #"
    assert LazyConfig.load(path, "rate") == 1e-5
    assert LazyConfig.load(path, ("depth", "text")) == (50, "Ünïcödé: - #")


# What Detectron2 wrote for such a config, word for word.
BY_DETECTRON2 = """\
a:
  _target_: detectron2.modeling.FPN
  act: !!python/name:torch.nn.modules.activation.ReLU ''
  by: !!binary |
    YWJj
  gelu: !!python/name:torch._C._nn.gelu ''
  gn: !!python/name:detectron2.layers.batch_norm.get_norm ''
  i: !!python/name:builtins.int ''
  inf: .inf
  lst:
  - !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: null, height: null, stride: 4, width: null}
  mode: !!python/object/apply:detectron2.structures.boxes.BoxMode [0]
  od: !!python/object/apply:collections.OrderedDict
  - - [a, 1]
  p: !!python/object/apply:pathlib.PosixPath [/, x, y]
  part: !!python/object/apply:functools.partial
    args: [&id001 !!python/name:torch.nn.modules.normalization.LayerNorm '']
    state: !!python/tuple
    - *id001
    - !!python/tuple []
    - {eps: 1.0e-06}
    - null
  rng: !!python/object/apply:builtins.range [0, 3, 1]
  st: !!python/object/apply:builtins.frozenset
  - [1, 2]
  t: !!python/tuple [1, 2]
"""


def test_what_detectron2_wrote(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(BY_DETECTRON2)
    a = LazyConfig.load(str(path)).a
    assert (a.act, a.gelu, a.gn, a.i) == (nn.ReLU, torch.nn.functional.gelu, d2.get_norm, int)
    assert instantiate(a.lst[0]) == ShapeSpec(stride=4)
    assert a.mode is d2.BoxMode.XYXY_ABS
    assert (a.by, a.inf, a.od, a.p) == (b"abc", float("inf"), {"a": 1}, pathlib.Path("/x/y"))
    assert (a.rng, a.st, a.t) == (range(3), frozenset([1, 2]), [1, 2])
    assert (a.part.func, a.part.keywords) == (nn.LayerNorm, {"eps": 1e-6})


def test_lite_stamps_and_writes_detectron2s_names(tmp_path):
    from elsa_det.d2lite import __version__
    from elsa_det.d2lite.layers import get_norm

    path = tmp_path / "config.yaml"
    config = config_of(
        spec={"p2": LiteShapeSpec(channels=3)}, norm=get_norm, eps=np.float64(0.5), target="elsa_det.d2lite.layers.x"
    )
    config.call = {"_target_": "elsa_det.d2lite.layers.ShapeSpec"}
    LiteConfig.save(config, str(path))
    first, *rest = path.read_text().splitlines()
    assert first.startswith(f"# Saved by elsa_det's d2lite {__version__}.")
    assert rest == [
        "call: {_target_: detectron2.layers.ShapeSpec}",
        "eps: 0.5",
        "norm: !!python/name:detectron2.layers.get_norm ''",
        "spec:",
        "  p2: !!python/object:detectron2.layers.ShapeSpec {channels: 3, height: null, stride: null, width: null}",
        "target: elsa_det.d2lite.layers.x",
    ]


@pytest.mark.parametrize(("writer", "reader"), [(LiteConfig, LazyConfig), (LazyConfig, LiteConfig)])
def test_from_provider_to_provider(tmp_path, writer, reader):
    path = str(tmp_path / "config.yaml")
    writer.save(
        config_of(spec=LazyCall(ShapeSpec)(channels=3), value=ShapeSpec(stride=2), f=len, x=(1, "${y}"), y=2), path
    )
    loaded = reader.load(path)
    assert loaded.spec == {"_target_": "detectron2.layers.ShapeSpec", "channels": 3}
    assert (loaded.value.stride, loaded.value.channels) == (2, None)
    kinds = {d2_module("config").LazyConfig: ShapeSpec, LiteConfig: LiteShapeSpec}
    assert type(OmegaConf.to_object(loaded).get("value")) is kinds[reader]
    assert (loaded.f, loaded.x) == (len, [1, 2])


@pytest.mark.parametrize(
    ("tagged", "message"),
    [
        ("!!python/object/apply:os.system ['touch {mark}']", "calls in a config are not made"),
        ("!!python/object/apply:subprocess.check_call [['touch', '{mark}']]", "calls in a config"),
        ('!!python/object/apply:builtins.eval [\'open("{mark}", "w")\']', "calls in a config"),
        ("!!python/object/apply:torch.hub.load ['x', 'y']", "calls in a config"),
        ("!!python/object/apply:detectron2.layers.get_norm ['BN', 1]", "calls in a config"),
        ("!!python/object/new:os.system ['touch {mark}']", "could not determine a constructor"),
        ("!!python/module:os", "could not determine a constructor"),
        ("!!python/name:os.system ''", "is not among what .*ELSA_DET_TRUST=os"),
        ("!!python/name:subprocess.run ''", "is not among what"),
        ("!!python/name:builtins.eval ''", "this builtin"),
        ("!!python/name:exec ''", "this builtin"),
        ("!!python/name:builtins.getattr ''", "this builtin"),
        ("!!python/name:torch.os.system ''", "is not among what"),
        ("!!python/name:torch.nn ''", "not a function or class"),
        ("!!python/name:torch.serialization.pickle.loads ''", "is not among what"),
        ("!!python/name:torch.load ''", "is not among what"),
        ("!!python/name:torch.nn.modules.module.torch.load ''", "torch.serialization.load' is not among what"),
        ("!!python/name:torch.from_file ''", "is not among what"),
        ("!!python/name:torch.nn.Module._apply ''", "is private"),
        (
            "!!python/object/apply:functools.partial {{state: [!!python/name:torch.hub.load '', [a, b], {{}}]}}",
            "is not among what",
        ),
        (
            "!!python/object/apply:builtins.set [!!python/object/apply:builtins.range [0, 10000000000]]",
            "a range is not made",
        ),
        ("&b [*b]", "refers to itself"),
        ("!!python/name:detectron2.layers.NoSuchThing ''", "not part of d2lite"),
        ("!!python/object:torch.nn.modules.activation.ReLU {{}}", "only dataclasses"),
        ("!!python/object:detectron2.layers.ShapeSpec {{channels: 1, depth: 2}}", "depth"),
        ("!!python/object:subprocess.Popen {{args: x}}", "only dataclasses"),
        ("!!python/object/apply:functools.partial [!!python/name:os.system '', x]", "is not among what"),
        ("!!python/object/apply:functools.partial [x]", "not enough values"),
    ],
)
def test_lite_reads_nothing_dangerous(tmp_path, tagged, message):
    mark = tmp_path / "ran"
    path = tmp_path / "config.yaml"
    path.write_text("a:\n  b: " + tagged.format(mark=mark))
    with pytest.raises(ValueError, match=message) as caught:
        LiteConfig.load(str(path))
    assert "config.yaml" in str(caught.value)
    assert "line 2" in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("line", ["l{i}: &l{i} [*l{j}, *l{j}]", "l{i}: &l{i} {{<<: [*l{j}, *l{j}]}}"])
def test_aliases_that_unfold_without_end_are_refused(line):
    lines = ["l0: &l0 {a: 1}", *(line.format(i=i, j=i - 1) for i in range(1, 40))]
    with pytest.raises(yaml.YAMLError, match="unfold to more than 200,000 values"):
        yaml_io.load_yaml("\n".join(lines))


def test_lite_reads_other_packages_when_told(monkeypatch):
    text = "!!python/name:itertools.count ''"
    with pytest.raises(Exception, match="itertools"):
        yaml_io.load_yaml(text)
    monkeypatch.setenv("ELSA_DET_TRUST", "mine, itertools")
    assert yaml_io.load_yaml(text) is itertools.count


def test_what_yaml_cannot_hold_is_said(tmp_path, caplog):
    path = tmp_path / "config.yaml"
    LazyConfig.save(config_of(x=lambda: 3, y=1), str(path))
    assert "y: 1" in path.read_text()
    assert "config.yaml" in caplog.text
    assert "loaded" in caplog.text


def test_lite_says_which_targets_are_lost(tmp_path, caplog):
    source = tmp_path / "leaf.py"
    source.write_text("from detectron2.config import LazyCall as L\ndef make(): ...\nmodel = L(make)()\n")
    LiteConfig.save(LiteConfig.load(str(source)), str(tmp_path / "config.yaml"))
    assert "no import finds" in caplog.text
    assert "leaf.make" in caplog.text


def test_lite_saves_parts_of_a_config(tmp_path):
    # what an interpolation points to may be in the other part, and values may be missing
    path = tmp_path / "config.yaml"
    part = config_of(model=LazyCall(nn.ReLU)(a="${train.x}", b="???"), list=[LazyCall(len)(), "${y}"], none=None)
    part.same = "${model}"
    LiteConfig.save(part, str(path))
    assert path.read_text().splitlines()[1:] == [
        "list:",
        "- {_target_: builtins.len}",
        "- ${y}",
        "model: {_target_: torch.nn.ReLU, a: '${train.x}', b: '???'}",
        "none: null",
        "same: ${model}",
    ]


def test_plain_yaml(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text("train:\n  lr: 0.1\n  steps: [1, 2]\n")
    config = LazyConfig.load(str(path))
    assert OmegaConf.to_container(config) == {"train": {"lr": 0.1, "steps": [1, 2]}}
    assert LazyConfig.load(str(path), "train").lr == 0.1
