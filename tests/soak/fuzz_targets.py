"""What is fuzzed: a reader, valid samples for it, and how they are changed."""

from __future__ import annotations

import io
import json
import pickle
import pydoc
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations as change
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save as save_safetensors

from elsa_det.checkpoint import convert_published, read_checkpoint
from elsa_det.config import load_config
from elsa_det.d2 import MetadataCatalog
from elsa_det.data.coco import load_own_coco
from elsa_det.data.coco_check import ERROR, check_coco, read_coco
from elsa_det.data.coco_merge import merge
from elsa_det.data.semantic.labels import LabelEncoding, read_labels
from elsa_det.engine.predictor import read_image
from elsa_det.overrides import apply_overrides


@dataclass
class Target:
    """``run`` takes an input and says what became of it; other than that it raises the named errors only."""

    seeds: list[bytes]
    mutate: Callable[[random.Random, bytes], bytes]
    run: Callable[[bytes], str]


def coco(folder: Path) -> Target:
    """The check of COCO-format data, its loader and merging."""
    for name, size in (("a.png", (80, 60)), ("b.png", (64, 48))):
        Image.new("RGB", size).save(folder / name)
    box = {"category_id": 3, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
    content: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 80, "height": 60},
            {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 3, "name": "nut"}, {"id": 7, "name": "fig"}],
        "annotations": [
            {"id": 1, "image_id": 1, **box, "segmentation": [[10, 10, 30, 10, 30, 40, 10, 40]]},
            {"id": 2, "image_id": 1, **box, "segmentation": {"size": [60, 80], "counts": "i2j0"}},
            {"id": 3, "image_id": 2, **box, "iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 3072]}},
        ],
    }
    seeds = [json.dumps(content).encode(), json.dumps(content | {"annotations": []}).encode()]
    file, number = folder / "in.json", iter(range(10**9))

    def mutate(rng: random.Random, data: bytes) -> bytes:
        return change.change_json(rng, data) if rng.random() < 0.8 else change.change_bytes(rng, data, seeds)

    def run(data: bytes) -> str:
        file.write_bytes(data)
        report = check_coco(file, folder)
        name = f"fuzz_{next(number)}"
        faults = bool(report.of(ERROR))
        try:
            load_own_coco(str(file), str(folder), name)
            merge([(read_coco(file), str(file), str(folder))], [{"id": 1, "name": "nut"}, {"id": 2, "name": "fig"}])
        finally:
            if name in MetadataCatalog.list():
                MetadataCatalog.remove(name)
        return "faults reported" if faults else "accepted"

    return Target(seeds, mutate, run)


def labels(folder: Path) -> Target:
    """Label maps, and the same files read as images."""
    stored = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5
    seeds = []
    for pixels, format in ((stored, "PNG"), (stored.astype(np.uint16) * 300, "PNG"), (stored, "BMP"), (stored, "TIFF"),
                           (np.dstack([stored] * 3), "PNG"), (np.dstack([stored] * 3), "JPEG"),
                           (np.dstack([stored] * 3), "WEBP"), (stored, "GIF")):  # fmt: skip
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, format)
        seeds.append(written.getvalue())
    palette = Image.fromarray(stored, "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 20, 20, 20])
    written = io.BytesIO()
    palette.save(written, "PNG")
    seeds.append(written.getvalue())
    encoding, file = LabelEncoding((0, 1, 2, 3, 4, 300), (255,)), folder / "in.png"

    def run(data: bytes) -> str:
        file.write_bytes(data)
        try:
            read_image(file)
            as_image = "an image"
        except ValueError:
            as_image = "no image"
        read_labels(file, encoding, size=(6, 8))
        return f"accepted, {as_image}"

    return Target(seeds, lambda rng, data: change.change_bytes(rng, data, seeds), run)


def checkpoints(folder: Path) -> Target:
    """Checkpoint files of all formats, and their conversion."""
    weights = {"patch_embed.proj.weight": torch.ones(4, 3, 2, 2), "layers.0.blocks.0.norm1.weight": torch.ones(4)}
    detector = {"backbone.fpn_lateral2.weight": torch.ones(2, 2, 1, 1), "roi_heads.box_head.fc1.bias": torch.ones(2)}
    arrays = {key: value.numpy() for key, value in weights.items()}

    def saved(content: Any, **options: Any) -> bytes:
        written = io.BytesIO()
        torch.save(content, written, **options)
        return written.getvalue()

    by_suffix: dict[bytes, list[bytes]] = {
        b".pth": [
            saved({"model": weights, "iteration": 7, "rng": np.arange(4), "half": np.float32(0.5)}),
            saved({"state_dict": detector, "meta": {"classes": ("a", "b")}}),
            saved({"model": weights}, _use_new_zipfile_serialization=False),
        ],
        b".pkl": [pickle.dumps({"model": arrays, "__author__": "x"}, protocol) for protocol in (2, 4, 5)],
        b".safetensors": [save_safetensors(weights), save_safetensors(detector)],
    }
    seeds = [suffix + b":" + data for suffix, group in by_suffix.items() for data in group]

    def mutate(rng: random.Random, data: bytes) -> bytes:
        suffix, _, content = data.partition(b":")
        group, draw = by_suffix[suffix], rng.random()
        if content[:2] == b"PK" and draw < 0.7:
            content = change.change_archive(rng, content, group)
        elif suffix == b".pkl" and draw < 0.7:
            content = change.change_pickle(rng, content)
        else:
            content = change.change_bytes(rng, content, group)
        return suffix + b":" + content

    def run(data: bytes) -> str:
        suffix, _, content = data.partition(b":")
        file = folder / f"in{suffix.decode()}"
        file.write_bytes(content)
        convert_published(read_checkpoint(file))
        return "accepted"

    return Target(seeds, mutate, run)


_CONFIG = """\
model:
  _target_: detectron2.modeling.GeneralizedRCNN
  spec: !!python/object:detectron2.layers.ShapeSpec {channels: 3, height: null, stride: 4, width: null}
  act: !!python/name:torch.nn.modules.activation.ReLU ''
  norm: !!python/object/apply:functools.partial
    args: [&id001 !!python/name:torch.nn.modules.normalization.LayerNorm '']
    state: !!python/tuple [*id001, !!python/tuple [], {eps: 1.0e-06}, null]
  heads: {_target_: detectron2.modeling.StandardROIHeads, num_classes: 6}
optimizer: {_target_: torch.optim.AdamW, lr: 0.001, betas: [0.9, 0.999], decay: '${train.decay}'}
train: {max_iter: 10, decay: 0.05, device: cpu, output_dir: out, amp: {enabled: false}}
"""

_EVIL = ("os.system", "subprocess.Popen", "builtins.eval", "torch.hub.load", "torch.load", "torch.nn.os.system", "eval",
         "detectron2.utils.registry.locate", "elsa_det.data.functools.partial", "..", "a..b", "torch.nn", "torch.nn.",
         "torch.nn.Module.__subclasses__", "torch.optim.Adam", "elsa_det.modeling.ELSASwin",
         "torch." * 500)  # fmt: skip

_YAML_VALUES = (
    *_EVIL, *(f"{{_target_: {name}}}" for name in _EVIL), *(f"!!python/name:{name} ''" for name in _EVIL),
    *(f"!!python/object/apply:{name} [1]" for name in _EVIL), "!!python/object/new:os.system [x]", "!!python/module:os",
    "!!python/object/apply:builtins.set [!!python/object/apply:builtins.range [0, 9999999999]]", "!!binary x",
    "!!set {a}",
    "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2000-99-99", "2000-13-01", "!!int x", "!!float x", "!!bool x",
    "!!python/tuple 1", "!!python/complex x", "!!python/int 9x", "&a [*a]", "*id001", "&b {<<: *id001}", "{<<: [1]}",
    "${model}", "${model._target_}", "${.x}", "${oc.env:HOME}", "${oc.create:'{_target_: os.system}'}", "${${train}}",
    "${oc.decode:'{_target_: os.system}'}", "${", "???", "0x" + "f" * 5000, "9" * 5000, "1e999", ".nan", "~", "''",
    "[" * 300 + "]" * 300, "[" * 30, "{? {a: 1} : 2}", "{1: 2, 1.5: 3, null: 4, true: 5}", "{[1]: 2}", "| ",
    "%YAML 9.9",
    "!!python/object:detectron2.layers.ShapeSpec {x: 1}", "!!python/object:detectron2.structures.boxes.BoxMode {a: 1}",
    "!!python/object/apply:detectron2.structures.boxes.BoxMode [99]", "!!python/object/apply:pathlib.PosixPath [1]",
)  # fmt: skip


_SMALL_CONFIG = """\
model:
  _target_: detectron2.modeling.GeneralizedRCNN
  heads: {_target_: detectron2.modeling.StandardROIHeads, num_classes: 6}
optimizer: {_target_: torch.optim.AdamW, lr: 0.001, betas: [0.9, 0.999], decay: '${train.decay}'}
train: {max_iter: 10, decay: 0.05, output_dir: out}
"""


def _check_harmless(cfg: Any) -> None:
    """Of what was accepted, nothing may be a call that is not of the packages that models and data are made of."""
    allowed = (
        "detectron2.",
        "elsa_det.",
        "torch.nn.",
        "torch.optim.",
        "torchvision.",
        "fvcore.",
        "builtins.",
        "torch._C.",
    )

    def look(node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("_target_")
            named = target if isinstance(target, str) and "${" not in target else None
            if named is not None and named != "???" and "." in named:
                found = pydoc.locate(named) if named.startswith((*allowed, "torch.")) else ""
                home = getattr(found, "__module__", None) or "builtins"
                assert found is None or (found != "" and f"{home}.".startswith(allowed)), named
            for value in node.values():
                look(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                look(value)
        elif callable(node) and hasattr(node, "__module__"):
            assert f"{node.__module__}.".startswith((*allowed, "functools.")), node

    look(OmegaConf.to_container(cfg, resolve=False))


def configs(folder: Path) -> Target:
    """Saved configs, read as data."""
    lines = _CONFIG.splitlines(keepends=True)
    seeds = ["".join(part).encode() for part in (lines, lines[:4], lines[:1] + lines[4:6], lines[:1] + lines[7:8],
                                                  lines[8:], lines[9:])]  # fmt: skip
    file = folder / "config.yaml"

    def mutate(rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.7:
            return change.change_lines(rng, data, _YAML_VALUES)
        return change.change_bytes(rng, data, seeds)

    def run(data: bytes) -> str:
        file.write_bytes(data)
        _check_harmless(load_config(file))
        return "accepted"

    return Target(seeds, mutate, run)


_OVERRIDES = (
    "train.max_iter=20", "train.decay=0.1", "model.heads.num_classes=3", "optimizer.lr=1e-4", "+new.key=[1,2]",
    "optimizer.betas=[0.8,0.99]", "model.heads={_target_: torch.nn.Identity}", "train.output_dir='a b'", "++x=1",
    "optimizer.betas.0=0.5", "train.output_dir=${oc.env:HOME}", "model.heads._target_=torch.nn.Linear", "~train.decay",
)  # fmt: skip
_KEYS = ("train", "train.max_iter", "model", "model.heads", "model._target_", "optimizer.betas.0", "optimizer.betas.9",
         "optimizer.betas", "x", "+x", "++x.y", "~x", "a.b.c", "..", "", "train.", "@x", "x@y:z", "model.heads.x", "9",
         "train[max_iter]", "optimizer.betas[0]")  # fmt: skip
_VALUES = (
    *_EVIL, *(f"{{_target_:{name}}}" for name in _EVIL), "${train.decay}", "${oc.create:'{_target_: os.system}'}",
    "1,2",
    "${model}", "${x}", "[1,[2,[3]]]", "{a:{b:1}}", "'it''s'", '"x', "range(1,10)", "choice(a,b)", "int(5)", "inf",
    "nan",
    "null", "true", "9" * 4000, "1e999", "str(${x})", "\\", "$", "=", "==", "[", "{", "[" * 60, "{a:" * 40, "é",
    "\0", "glob(*)",
    "shuffle(1,2)", "extend_list(1)", "json_str({a:1})", "tag(x,y)", "sort(3,2,1)", "float(x)", "bool(3)", "???", "''",
)  # fmt: skip


def overrides(folder: Path) -> Target:
    """Overrides of the command line; several have spaces between them."""
    (folder / "base.yaml").write_text(_SMALL_CONFIG)
    base = load_config(folder / "base.yaml")
    seeds = [text.encode() for text in _OVERRIDES]

    def mutate(rng: random.Random, data: bytes) -> bytes:
        draw = rng.random()
        if draw < 0.6:
            key = rng.choice(_KEYS) if draw < 0.5 else data.decode(errors="replace").partition("=")[0]
            return f"{key}={rng.choice(_VALUES)}".encode()
        return change.change_bytes(rng, data, seeds)

    def run(data: bytes) -> str:
        text = data.decode("utf-8", errors="surrogateescape")
        _check_harmless(apply_overrides(OmegaConf.create(base), [text]))
        return "accepted"

    return Target(seeds, mutate, run)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "coco": coco,
    "labels": labels,
    "checkpoints": checkpoints,
    "configs": configs,
    "overrides": overrides,
}
