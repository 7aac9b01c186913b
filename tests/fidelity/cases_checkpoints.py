"""Checkpoints: files, what is loaded of them, and names that are matched by their ends."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from d2_access import d2_module
from fidelity.harness import case, error_of, fill, folder, log_lines
from torch import nn

from elsa_det import d2


class Model(nn.Module):
    """Names that share their ends, a tied layer, buffers that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"stem": nn.Conv2d(1, 2, 1), "stage": nn.ModuleDict({"stem": nn.Conv2d(2, 2, 1)})}
        )
        self.head = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.register_buffer("pixel_mean", torch.ones(3))
        self.register_buffer("pixel_std", torch.ones(3))


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def values(prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict of the model that follows from its names."""
    return {prefix + name: value for name, value in state_of(fill(Model(), 1.0)).items()}


class Counter:
    """Something with a state."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


@case(
    "DetectionCheckpointer",
    what="files and their keys, the last one, resuming, chosen checkpointables, what is left over; errors",
)
def saving():
    out: dict = {}
    with folder() as at, log_lines():
        model, counter = fill(Model(), 1.0), Counter(7)
        made = d2.DetectionCheckpointer(model, str(at), counter=counter)
        out["before"] = [made.has_checkpoint(), made.get_checkpoint_file()]
        made.save("first", iteration=3, note="words")
        made.save("second", iteration=4)
        out["files"] = sorted(path.name for path in at.iterdir())
        content = torch.load(at / "first.pth", weights_only=True)
        out["keys"] = [list(content), list(content["model"]), content["counter"], content["iteration"], content["note"]]
        out["last"] = [Path(made.get_checkpoint_file()).name, (at / "last_checkpoint").read_text()]
        fresh, count = Model(), Counter(0)
        other = d2.DetectionCheckpointer(fresh, str(at), counter=count)
        rest = other.resume_or_load("elsewhere.pth", resume=True)
        out["resumed"] = {"rest": rest, "counter": count.value, "model": state_of(fresh)}
        count.value = 0
        rest = other.resume_or_load(str(at / "first.pth"), resume=False)
        out["loaded"] = [rest, count.value]
        rest = other.load(str(at / "first.pth"), checkpointables=[])
        out["nothing_chosen"] = [sorted(rest), count.value]
        out["no_path"] = other.load("")
        silent = d2.DetectionCheckpointer(model, str(at / "silent"), save_to_disk=False)
        out["silent"] = [silent.save("x"), (at / "silent").exists()]
        out["errors"] = [
            error_of(lambda: d2.DetectionCheckpointer(model).load(str(at / "none.pth"))),
            error_of(lambda: d2.DetectionCheckpointer(model).load(str(at / "first.pth?unknown=1"))),
            error_of(lambda: d2.DetectionCheckpointer(model).load(str(at / "first.pth"), checkpointables=["model"])),
            error_of(lambda: other.add_checkpointable("x", 3)),
        ]
    return out


FILES = {
    "whole": lambda: {"model": values()},
    "bare": values,
    "wrapped": lambda: {"model": {f"module.{name}": value for name, value in values().items()}},
    "partial": lambda: {"model": {k: v for k, v in values().items() if "head.0" not in k and "pixel" not in k}},
    "more": lambda: {
        "model": values() | {"other.weight": torch.ones(2), "proposal.anchor_generator.cell_anchors.0": torch.ones(1)}
    },
    "anchors": lambda: {"model": values() | {"proposal.anchor_generator.cell_anchors.0": torch.ones(1)}},
    "other_shape": lambda: {"model": values() | {"head.0.weight": torch.ones(5, 5)}},
}


def _told(lines: list[str]) -> list[str]:
    """The names that the log says are missing or left over."""
    text = re.sub(r"\x1b\[\d+m", "", "\n".join(lines))
    found = re.findall(r"(?:head|other|pixel|backbone|proposal)[\w.{}, /*()]*", text)
    return sorted({re.sub(r"[\s()*]+$", "", each) for each in found})


@case("DetectionCheckpointer", what="what is loaded of seven files, and which names are told as missing or unexpected")
def loading():
    out: dict = {}
    for name, make in FILES.items():
        with folder() as at, log_lines(level=30) as lines:
            torch.save(make(), at / "file.pth")
            model = Model()
            for value in model.state_dict().values():
                value.zero_()
            d2.DetectionCheckpointer(model).load(str(at / "file.pth"))
        out[name] = {"sums": {k: float(v.sum()) for k, v in model.state_dict().items()}, "told": _told(lines)}
    return out


@case(
    "DetectionCheckpointer",
    what="names matched by their ends: the longest end, shapes, a file that says so itself, ambiguity",
)
def heuristics():
    out: dict = {}
    own = values()
    stem, inner = own["backbone.stem.weight"], own["backbone.stage.stem.weight"]
    files = {
        "short": {
            "stem.weight": stem,
            "stage.stem.weight": inner,
            "stem.bias": own["backbone.stem.bias"],
            "0.weight": torch.ones(3, 2),
        },
        "long": {
            "stage.stem.bias": torch.ones(2),
            "stem.bias": torch.zeros(2) + 5,
            "head.0.bias": torch.ones(3),
            "unknown.x": torch.zeros(0),
        },
        "other_shape": {"0.weight": torch.ones(7, 7), "head.0.bias": torch.ones(3)},
        "nothing": {"something.else": torch.ones(3)},
        "full_names": own,
        "inside_a_word": {"em.weight": stem, "ead.0.bias": torch.ones(3)},
    }
    for name, state in files.items():
        for kind in ("query", "pickle"):
            with folder() as at, log_lines():
                model = Model()
                for value in model.state_dict().values():
                    value.zero_()
                if kind == "query":
                    path = f"{at / 'file.pth'}?matching_heuristics=True"
                    torch.save({"model": state}, at / "file.pth")
                else:
                    path = str(at / "file.pkl")
                    arrays = {key: value.numpy() for key, value in state.items()}
                    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
                    (at / "file.pkl").write_bytes(pickle.dumps(content))
                out[f"{name}_{kind}"] = {
                    "outcome": error_of(lambda m=model, p=path: d2.DetectionCheckpointer(m).load(p))
                }
                out[f"{name}_{kind}"]["sums"] = {k: float(v.double().sum()) for k, v in model.state_dict().items()}
    return out


@case("DetectionCheckpointer", "hooks", what="what the periodic hook saves and keeps, and which model is the best")
def periodic():
    hooks = d2_module("engine.hooks")
    out: dict = {}
    with folder() as at, log_lines():
        trainer = d2.TrainerBase()
        trainer.run_step = lambda: trainer.storage.put_scalar(
            "score", [float("inf"), 3.0, float("nan"), 4.0, 1.0, 9.0, 2.0][trainer.iter], smoothing_hint=False
        )
        saved = d2.DetectionCheckpointer(Model(), str(at))
        trainer.register_hooks(
            [
                hooks.PeriodicCheckpointer(saved, 2, max_to_keep=2, file_prefix="step"),
                hooks.BestCheckpointer(1, saved, "score", "max", file_prefix="best"),
                hooks.BestCheckpointer(2, saved, "score", "min", file_prefix="least"),
                hooks.BestCheckpointer(2, saved, "unknown", "min", file_prefix="none"),
            ]
        )
        trainer.train(0, 7)
        out["files"] = sorted(path.name for path in at.iterdir())
        for name in ("best", "least"):
            out[name] = torch.load(at / f"{name}.pth", weights_only=True)["iteration"]
        out["error"] = error_of(lambda: hooks.BestCheckpointer(1, saved, "score", "most"))
    return out
