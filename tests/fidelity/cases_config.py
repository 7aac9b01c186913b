"""Configs: loading, overriding, saving, showing, and making what they describe."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from fidelity.harness import case, error_of, folder, log_lines
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from elsa_det import d2

FILES = {
    "base.py": """
import torch
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler

import detectron2.structures
import detectron2.utils.comm as ranks

_hidden = dict(x=1, kinds=[detectron2.structures.Boxes, ranks.get_rank])
train = dict(seed=3, amp=dict(enabled=False), steps=[60, 80], names=("a", "b"), lr=1e-4, nothing=None)
model = L(torch.nn.Conv2d)(in_channels=3, out_channels="${.in_channels}", kernel_size=(3, 1), bias=False)
shape = L(ShapeSpec)(channels=8)
norm = L(torch.nn.ModuleDict)(modules=dict(a=L(torch.nn.BatchNorm2d)(num_features=4), b=L(torch.nn.ReLU)()))
optimizer = L(torch.optim.SGD)(params=L(list)(), lr=0.5)
number = 5
function = torch.nn.functional.relu
""",
    "leaf.py": """
from .base import model, train, number
from .inner.more import extra, train as other
from detectron2.config import LazyCall as L

train.seed = 4
train["added"] = dict(deep=dict(x=1.5))
model.in_channels = 7
mine = L("torch.nn.Linear")(in_features=2, out_features=extra)
plain = dict(a=[1, dict(b=2)], other_seed=other.seed)
""",
    "inner/more.py": """
from ..base import train
train.seed = 99
extra = dict(size=3)
more = [1, 2]
""",
    "bad_import.py": "from .nothing import x\n",
    "bad_name.py": "from .base import nothing\n",
    "bad_folder.py": "from . import base\n",
    "bad_syntax.py": "x = = 1\n",
    "plain.yaml": """
a: {_target_: torch.nn.Linear, in_features: 2}
list: [1, 2.5, null, true, text]
ref: ${a.in_features}
""",
}


@contextlib.contextmanager
def files() -> Iterator[Path]:
    with folder() as at:
        for name, text in FILES.items():
            (at / name).parent.mkdir(exist_ok=True)
            (at / name).write_text(text)
        yield at


def shown(config) -> str:
    """A config as text: kinds of containers, order, targets by their last name, interpolations as they stand."""
    if isinstance(config, (DictConfig, ListConfig)):
        kind = "" if isinstance(config, DictConfig) else "L"
        return kind + shown(OmegaConf.to_container(config, resolve=False))
    if isinstance(config, dict):
        return "{" + ", ".join(f"{key}: {shown(value)}" for key, value in config.items()) + "}"
    if isinstance(config, (list, tuple)):
        return type(config).__name__ + "[" + ", ".join(map(shown, config)) + "]"
    return getattr(config, "__name__", None) or repr(config)


@case("LazyConfig", "LazyCall", what="Python and YAML files, relative imports, keys, what is left out; errors")
def loading():
    out: dict = {}
    with files() as at, log_lines():
        for name in ("base.py", "leaf.py", "inner/more.py", "plain.yaml"):
            loaded = d2.LazyConfig.load(str(at / name))
            out[name] = [type(loaded).__name__, shown(loaded), list(loaded)]
        leaf = str(at / "leaf.py")
        out["one_key"] = shown(d2.LazyConfig.load(leaf, "mine"))
        out["keys"] = [shown(each) for each in d2.LazyConfig.load(leaf, ("train", "number"))]
        parts = [
            loaded,
            d2.LazyConfig.load(leaf).mine,
            d2.LazyConfig.load(leaf, "train"),
            d2.LazyConfig.load(leaf).plain,
        ]
        out["flags"] = [part._get_flag("allow_objects") for part in parts]
        fresh = d2.LazyConfig.load(leaf)
        fresh.train.seed = 12
        out["nothing_kept"] = d2.LazyConfig.load(leaf).train.seed
        (at / "rel.py").write_text(
            "from elsa_det.d2 import LazyConfig\nmodel = LazyConfig.load_rel('base.py', 'model')\n"
        )
        out["relative"] = shown(d2.LazyConfig.load(str(at / "rel.py")))
        bad = [name for name in FILES if name.startswith("bad")] + ["none.py", "none.txt"]
        out["errors"] = {name: error_of(lambda name=name: d2.LazyConfig.load(str(at / name))) for name in bad}
        out["no_key"] = error_of(lambda: d2.LazyConfig.load(leaf, "nothing"))
    return out


OVERRIDES = {
    "number": ["train.seed=7"],
    "kinds": [
        "train.lr=1e-3",
        "train.amp.enabled=True",
        "train.nothing=null",
        "train.a=text",
        "train.b='quoted, text'",
    ],
    "new": ["train.new.deep.key=1", "other=2"],
    "dict": ["train.amp={enabled: true, more: [1, 2]}"],
    "list": ["train.steps=[1,2,3]", "plain.a.1.b=9", "plain.a.0=4"],
    "call": ["model.kernel_size=[5,5]", "model._target_=torch.nn.Conv3d", "model.padding=2"],
    "interpolation": ["train.seed=${number_of.it}", "model.out_channels=${.in_channels}"],
    "later_wins": ["train.seed=1", "train.seed=2"],
    "added": ["+train.plus=1", "++train.seed=8"],
    "path": ["train.path=/a/b-c_d.pth", "train.url='https://host/x?y=1'", "train.empty="],
}


@case("LazyConfig", what="overrides of numbers, lists, dicts, new keys, calls, texts; errors")
def overriding():
    out: dict = {}
    with files() as at:
        for name, overrides in OVERRIDES.items():
            config = d2.LazyConfig.load(str(at / "leaf.py"))
            same = d2.LazyConfig.apply_overrides(config, overrides) is config
            out[name] = [shown(config), same]
        for bad in ("train.seed.deep=1", "~train.seed", "train.seed=1,2", "train.seed", "train.=3"):
            config = d2.LazyConfig.load(str(at / "leaf.py"))
            out[f"error {bad}"] = error_of(lambda config=config, bad=bad: d2.LazyConfig.apply_overrides(config, [bad]))
    return out


@case("LazyConfig", what="the text of saved files and what is loaded of them; the text to look at")
def saving():
    out: dict = {}
    with files() as at, log_lines():
        for name in ("base.py", "leaf.py", "plain.yaml"):
            config = d2.LazyConfig.load(str(at / name))
            before = shown(config)
            d2.LazyConfig.save(config, str(at / "saved.yaml"))
            text = (at / "saved.yaml").read_text()
            out[name] = [line for line in text.splitlines() if not line.startswith("#")]
            again = d2.LazyConfig.load(str(at / "saved.yaml"))
            out[f"{name} again"] = [shown(again), shown(config) == before]
            d2.LazyConfig.save(again, str(at / "twice.yaml"))
            out[f"{name} twice"] = (at / "twice.yaml").read_text() == text
            if name == "base.py":
                config.pop("shape")  # a call of something named by a text: see intended.py
                code = d2.LazyConfig.to_py(config, prefix="c.")
                out[f"{name} py"] = ast.unparse(ast.parse(code)).splitlines()  # black lays it out where it is installed
    return out


@dataclasses.dataclass
class Pair:
    """A dataclass to be called."""

    first: int = 1
    second: int = 2


def given(*arguments, **options):
    """What it is called with."""
    return [list(arguments), options]


class Inner:
    """Has something that can be called."""

    @staticmethod
    def make(x: int) -> int:
        return x + 1


@case(
    "instantiate",
    "LazyCall",
    what="calls in calls, lists, names, methods, dataclasses, objects left as they are; errors",
)
def making():
    call, make = d2.LazyCall, d2.instantiate
    nested = call(given)(a=call(given)(b=[call(Inner.make)(x=1), 2]), c={"d": call(given)()}, e=(1, 2))
    made = make(nested)
    layer = call(nn.Linear)(in_features=2, out_features=3, bias=False)
    layer.out_features = 5
    built = make(layer)
    module = nn.Identity()
    errors = {
        "name": {"_target_": "torch.nothing"},
        "argument": {"_target_": "torch.nn.Linear", "unknown": 1},
        "not_callable": {"_target_": "torch.pi"},
    }
    with log_lines():
        return {
            "nested": json.dumps(made, default=_described),
            "layer": [type(built).__name__, *built.weight.shape, built.bias is None],
            "by_name": str(make({"_target_": "torch.nn.ReLU", "inplace": True})),
            "target": type(make({"_target_": nn.ReLU})).__name__,
            "list": str(make([call(Inner.make)(x=4), 7, {"a": 1}])),
            "list_config": [type(make(OmegaConf.create([{"_target_": "torch.nn.ReLU"}, 1]))).__name__],
            "dataclass": dataclasses.asdict(make(call(Pair)(first=3, second=call(Inner.make)(x=8)))),
            "structured": dataclasses.asdict(make(OmegaConf.structured(Pair(first=4)))),
            "kept": [make(module) is module, make(5), make("text"), make(None) is None],
            "object_inside": make(call(given)(m=module))[1]["m"] is module,
            "kinds": [type(call(given)(a=1)).__name__, call(given)(a=1)._target_ is given],
            "errors": {name: error_of(lambda bad=bad: make(bad)) for name, bad in errors.items()},
            "bad_call": [error_of(lambda: call(3)), error_of(lambda: call("torch.nn.Linear")(x=1))],
        }


def _described(value) -> list:
    """What JSON has no words for."""
    if isinstance(value, DictConfig):
        return ["DictConfig", *([key, each] for key, each in value.items_ex(resolve=False))]
    return [type(value).__name__, *(value if isinstance(value, ListConfig) else [value.__name__])]


NAMES = ("torch.nn.Conv2d", "detectron2.config.instantiate", "detectron2.modeling.FPN", "torch.nn.functional.relu")


@case("locate", what="names of modules, classes, methods, Detectron2's own; what is nowhere")
def names():
    found = [d2.locate(name) for name in NAMES]
    return {
        "names": [getattr(each, "__name__", "") for each in found],
        "own": [
            found[1] is d2.instantiate,
            found[2] is d2.FPN,
            d2.locate("detectron2.structures.Boxes.cat") == d2.Boxes.cat,
        ],
        "module": d2.locate("torch.nn") is torch.nn,
        "errors": [
            error_of(lambda name=name: d2.locate(name)) for name in ("torch.none", "nowhere.x", "detectron2.none")
        ],
    }
