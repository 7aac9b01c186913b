"""Training: the loop, its steps, hooks, and what commands have in common."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import re
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from d2_access import d2_module
from fidelity.harness import case, error_of, folder, generator, log_lines
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf
from torch import nn

from elsa_det import d2


class Told(d2.HookBase):
    """Writes down when it is called."""

    def __init__(self, calls: list, name: str) -> None:
        self.calls, self.name = calls, name

    def __getattribute__(self, moment):
        if moment in ("before_train", "after_train", "before_step", "after_step", "after_backward"):
            self.calls.append([self.name, moment, self.trainer.iter, self.trainer.storage.iter])
        return super().__getattribute__(moment)

    def state_dict(self):
        return {"name": self.name} if self.name == "b" else {}

    def load_state_dict(self, state):
        self.calls.append(["loaded", state["name"]])


class Slope(nn.Module):
    """Squared error of a line, as two losses."""

    def __init__(self, single: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.single = single
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
            self.layer.bias.fill_(0.25)

    def forward(self, x):
        loss = self.layer(x).square().mean()
        return loss if self.single else {"loss_a": loss, "loss_b": self.layer.weight.abs().sum() / 10}


def data(number: int = 8) -> list[torch.Tensor]:
    return [torch.randn(4, 3, generator=generator(n)) for n in range(number)]


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def histories(storage) -> dict:
    """All scalars but times."""
    kept = {name: [list(pair) for pair in history.values()] for name, history in storage.histories().items()}
    return {name: kept[name] for name in sorted(kept) if not name.endswith("time")}


@case("TrainerBase", "HookBase", what="order and iterations of the hooks' calls, also after a failure; states; errors")
def loop():
    calls: list = []
    trainer = d2.TrainerBase()
    trainer.run_step = lambda: calls.append(["step", trainer.iter])
    trainer.register_hooks([Told(calls, "a"), None, Told(calls, "b")])
    with log_lines():
        trainer.train(2, 4)
    out: dict = {"calls": list(calls), "after": [trainer.iter, trainer.start_iter, trainer.max_iter]}
    out["state"] = json.dumps(trainer.state_dict(), sort_keys=True)
    calls.clear()
    trainer.load_state_dict({"iteration": 9, "hooks": {"Told": {"name": "x"}, "Unknown": {}}})
    out["loaded"] = [calls[-1], trainer.iter]
    calls.clear()
    trainer.run_step = lambda: 1 / 0
    with log_lines():
        out["failure"] = [error_of(lambda: trainer.train(0, 3)), [call[:3] for call in calls], trainer.iter]
    out["bare"] = [error_of(d2.TrainerBase().run_step), d2.HookBase().state_dict() == {}]
    out["wrong"] = error_of(lambda: trainer.register_hooks([3]))
    return out


@case(
    "SimpleTrainer",
    what="weights, losses and metrics of eight steps, with all its options; states; bad losses",
    rtol=1e-6,
    atol=1e-7,
)
def steps():
    out: dict = {}
    for name, single, options in (
        ("usual", False, {}),
        ("single", True, {}),
        ("gathered", False, {"gather_metric_period": 3}),
        ("zero_first", False, {"zero_grad_before_forward": True}),
        ("async", False, {"async_write_metrics": True}),
    ):
        model = Slope(single)
        trainer = d2.SimpleTrainer(model.eval(), data(), optimizer_of(model), **options)
        with log_lines():
            trainer.train(0, 8)
        out[name] = {"scalars": histories(trainer.storage), "weights": model.layer.weight, "training": model.training}
        out[name]["times"] = sorted(n for n in trainer.storage.histories() if n.endswith("time"))
    state = trainer.state_dict()
    out["state"] = [sorted(state), state["iteration"], state["optimizer"]["state"][0]["momentum_buffer"]]
    model = Slope()
    other = d2.SimpleTrainer(model, data(), optimizer_of(model))
    other.load_state_dict(state)
    out["resumed"] = [other.iter, other.optimizer.state_dict()["state"][0]["momentum_buffer"]]
    bad = Slope()
    with torch.no_grad():
        bad.layer.bias.fill_(math.nan)
    trainer = d2.SimpleTrainer(bad, data(), optimizer_of(bad))
    with log_lines():
        out["nan"] = [error_of(lambda: trainer.train(0, 2)), bad.layer.weight]
    return out


@case(
    "AMPTrainer",
    what="weights, scales and metrics of eight steps with a scaler; its state; what it does not take",
    rtol=1e-5,
    atol=1e-6,
)
def mixed_precision():
    out: dict = {}
    # CUDA's own arithmetic is not asked for: everything around it is the same on the CPU.
    with mock.patch("torch.cuda.is_available", return_value=True), mock.patch("torch.cuda.synchronize"):
        for name, options in {
            "usual": {},
            "logged": {"log_grad_scaler": True, "zero_grad_before_forward": True},
        }.items():
            model = Slope()
            scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
            trainer = d2.AMPTrainer(model, data(), optimizer_of(model), grad_scaler=scaler, **options)
            with log_lines(), d2.EventStorage() as storage:
                for iteration in range(8):
                    trainer.iter = storage.iter = iteration
                    trainer.run_step()
            out[name] = {
                "scalars": histories(storage),
                "weights": model.layer.weight,
                "state": trainer.state_dict()["grad_scaler"],
            }
    out["state"] = sorted(trainer.state_dict())
    out["defaults"] = [str(trainer.precision), trainer.log_grad_scaler]
    replicated = nn.DataParallel(Slope())
    replicated.device_ids = [0, 1]
    out["errors"] = [error_of(lambda: d2.AMPTrainer(replicated, data(), optimizer_of(Slope())))]
    with mock.patch("torch.cuda.is_available", return_value=False):
        out["errors"].append(error_of(trainer.run_step))
    return out


@case(
    "hooks",
    what="scalars and calls of a training with rates, evaluation, writers, callbacks and times; states",
    rtol=1e-6,
    atol=1e-7,
)
def usual_hooks():
    hooks, model, calls = d2.hooks, Slope(), []
    optimizer = optimizer_of(model)
    trainer = d2.SimpleTrainer(model, data(), optimizer)
    written: list = []

    class Writer(d2.EventWriter):
        def write(self):
            written.append(d2.get_event_storage().iter)

        def close(self):
            written.append("closed")

    results = iter([{"bbox": {"AP": 1.5, "inner": {"x": 2}}}, None, {"accuracy": 0.5}, {}])
    schedule = hooks.LRScheduler(optimizer, LinearParamScheduler(1.0, 0.0))
    trainer.register_hooks(
        [
            hooks.IterationTimer(warmup_iter=2),
            schedule,
            hooks.EvalHook(3, lambda: next(results)),
            hooks.EvalHook(0, lambda: calls.append("only at the end")),
            hooks.EvalHook(4, lambda: calls.append("not at the end"), eval_after_train=False),
            hooks.CallbackHook(
                before_train=lambda t: calls.append(["before_train", t.iter]),
                after_step=lambda t: calls.append(["after_step", t.iter]),
                after_train=lambda t: calls.append(["after_train", t.iter]),
            ),
            hooks.PeriodicWriter([Writer()], period=3),
        ]
    )
    with log_lines() as lines:
        trainer.train(0, 8)
    out = {"scalars": histories(trainer.storage), "written": written, "calls": calls}
    out["times"] = len(trainer.storage.history("time").values())
    out["lines"] = [re.sub(r"[\d:.]+", "N", line) for line in lines if "speed" in line or "Total" in line]
    out["state"] = json.dumps(trainer.state_dict()["hooks"], sort_keys=True)
    out["not_smoothed"] = sorted(name for name, hint in trainer.storage.smoothing_hints().items() if not hint)
    out["groups"] = [
        hooks.LRScheduler.get_best_param_group_id(
            torch.optim.SGD(
                [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for n, lr in groups], lr=1.0
            )
        )
        for groups in ([(1, 0.1), (3, 0.2), (2, 0.3)], [(1, 0.1), (1, 0.2), (1, 0.2)], [(2, 0.1), (2, 0.2)])
    ]
    for bad in (lambda: {"x": "word"}, lambda: [1]):
        failing = d2.SimpleTrainer(Slope(), data(), optimizer)
        failing.register_hooks([hooks.EvalHook(1, bad)])
        with log_lines():
            out.setdefault("errors", []).append(error_of(lambda t=failing: t.train(0, 2)))
    out["errors"].append(error_of(lambda: hooks.PeriodicWriter([3])))
    return out


@case("default_argument_parser", what="all options and defaults, of several command lines, the port")
def arguments():
    parser = d2.default_argument_parser()
    out: dict = {}
    for name, line in {
        "none": [],
        "all": [
            "--config-file",
            "a.py",
            "--resume",
            "--eval-only",
            "--num-gpus",
            "4",
            "--num-machines",
            "2",
            "--machine-rank",
            "1",
            "--dist-url",
            "x",
            "a.b=1",
            "c=2",
        ],
        "opts": ["--config-file", "x", "optimizer.lr=0.1", "--later"],
    }.items():
        found = vars(parser.parse_args(line))
        address, _, port = found["dist_url"].rpartition(":")
        out[name] = {k: str(v) for k, v in sorted(found.items())} | (
            {"dist_url": [address, int(port) == 2**15 + 2**14 + hash(os.getuid()) % 2**14]} if port.isdigit() else {}
        )
    out["epilog"] = d2.default_argument_parser(epilog="own words").epilog
    out["examples"] = "--num-gpus 8" in parser.epilog
    out["error"] = error_of(lambda: parser.parse_args(["--unknown-first"]))
    return out


@contextlib.contextmanager
def loggers_restored():
    names = ("detectron2", "elsa_det.d2lite", "fvcore")
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in names}
    try:
        yield
    finally:
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers[:] = handlers
            logging.getLogger(name).propagate = propagate


@case(
    "default_setup",
    "default_writers",
    what="files and lines of the log, the saved config, numbers drawn after the seed, switches; writers",
)
def setup():
    out: dict = {}
    defaults = d2_module("engine.defaults")
    benchmark = torch.backends.cudnn.benchmark
    with (
        folder() as at,
        loggers_restored(),
        mock.patch.object(defaults, "collect_env_info", return_value="the environment"),
        mock.patch("sys.stdout"),
        mock.patch.dict("os.environ"),
    ):
        (at / "c.py").write_text("x = 1\n")
        for name, train in {
            "seeded": {"seed": 5, "cudnn_benchmark": True},
            "tested": {"seed": 6},
            "plain": {"seed": 7},
        }.items():
            torch.backends.cudnn.benchmark = False
            cfg = OmegaConf.create(
                {"train": {"output_dir": str(at / name), **train}, "model": {"_target_": "torch.nn.Identity"}}
            )
            args = SimpleNamespace(config_file=str(at / "c.py"), eval_only=name == "tested", opts=[])
            d2.default_setup(cfg, args)
            drawn = [random.random(), float(np.random.rand()), int(torch.randint(1000, ()))]
            log = (at / name / "log.txt").read_text()
            lines = [line.split("INFO: ")[-1] for line in log.splitlines() if "INFO" in line]
            saved = (at / name / "config.yaml").read_text().replace(str(at), "AT")
            out[name] = {
                "drawn": drawn,
                "benchmark": torch.backends.cudnn.benchmark,
                "files": sorted(path.name for path in (at / name).iterdir()),
                "said": [
                    any(start in line for line in lines)
                    for start in (
                        "Rank of current process: 0. World size: 1",
                        "Command line arguments:",
                        "Contents of args.config_file=",
                        "Full config saved to",
                    )
                ],
                "saved": [line for line in saved.splitlines() if not line.startswith("#")],
            }
        torch.backends.cudnn.benchmark = benchmark
        writers = d2.default_writers(str(at / "w"), 90)
        out["writers"] = [type(writer).__name__ for writer in writers]
        out["limits"] = [writers[0]._max_iter, d2.default_writers(str(at / "w"))[0]._max_iter]
        with d2.EventStorage() as storage:
            storage.put_scalar("x", 1.0)
            writers[1].write()
        out["metrics"] = (at / "w" / "metrics.json").read_text()
        for writer in writers:
            writer.close()
    return out
