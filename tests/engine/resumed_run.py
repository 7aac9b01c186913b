"""A tiny training on the CPU, for tests of what interrupts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from elsa_det.config import config_root
from elsa_det.d2 import default_argument_parser
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.engine.gradients import ClipGradients
from elsa_det.engine.training import main


def write_data(folder: Path) -> list[str]:
    """Write seven training and two test pictures; gives the overrides of a training on them.

    Every second picture is wide, so that most of the time a batch of either kind is half full.
    """
    write_shapes(folder, SetSpec(train=7, val=2, scene=SceneSpec(image_size=64, max_object=40)))
    annotations = folder / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    for entry in content["images"][::2]:
        path = folder / "train" / entry["file_name"]
        wide = Image.new("RGB", (80, 64))
        wide.paste(Image.open(path))
        wide.save(path)
        entry["width"] = 80
    annotations.write_text(json.dumps(content))
    return [
        *overrides_for(folder),
        "model.backbone.bottom_up.embed_dim=16",
        "model.proposal_generator.pre_nms_topk=[40,40]",
        "model.proposal_generator.post_nms_topk=[20,20]",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "train.device=cpu",
        "train.seed=3",
        "train.log_period=1",
        "train.eval_period=0",
        "train.check_memory=off",
        "train.check_data=off",
        "train.figures.enabled=False",
    ]


CONFIG = str(config_root() / "quickstart" / "elsa_nano_mrcnn.py")


def losses(folder: Path) -> dict[int, dict[str, Any]]:
    """Losses and gradient norms by iteration, as the run wrote them; what was written again counts."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        scalars = json.loads(line)
        if "total_loss" in scalars:
            kept = {k: v for k, v in scalars.items() if "loss" in k or k in ("grad_norm", "lr")}
            found.setdefault(scalars["iteration"], {}).update(kept)
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # not a number on both sides, as scores of classes that do not occur


def run(folder: Path, *options: str) -> Any:
    """Train into a folder, in this process."""
    args = default_argument_parser().parse_args(["--config-file", CONFIG, *options, f"train.output_dir={folder}"])
    return main(args)


class Interrupted(BaseException):
    """Ends a training at once, as nothing that it expects."""


def act_at(monkeypatch: Any, iteration: int, act: Callable[[], Any]) -> None:
    """Within the pass of that iteration, do something."""
    original = ClipGradients.after_backward

    def after_backward(self: ClipGradients) -> None:
        if self.trainer.iter == iteration:
            act()
        original(self)

    monkeypatch.setattr(ClipGradients, "after_backward", after_backward)


def interrupt() -> None:
    raise Interrupted
