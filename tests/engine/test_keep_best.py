"""Keeping the best, stopping early, and both across an interruption."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from elsa_det import d2
from elsa_det.engine.ema import WeightsWriter
from elsa_det.engine.keep_best import (
    CheckpointAfterEvaluation,
    EarlyStopping,
    KeepBest,
    TrainingStopped,
    flat_names,
    require_metrics,
)
from elsa_det.errors import UserError

RISING_AND_FALLING = [1.0, 3.0, 2.0, 3.05, 2.5, 2.4, 9.0]


class Run:
    """A training of ``steps`` with the given metric after each second iteration, as the training command sets it up."""

    def __init__(self, folder, values, *, patience=None, steps=14, mode="max", min_delta=0.1):
        self.model = nn.Linear(1, 1)
        Path(folder).mkdir(exist_ok=True)
        self.trainer = d2.SimpleTrainer(
            Counting(self.model), [torch.zeros(1, 1)] * 100, torch.optim.SGD(self.model.parameters(), lr=0.0)
        )
        self.evaluated: list[int] = []
        self.checkpointer = d2.DetectionCheckpointer(self.model, str(folder), trainer=self.trainer)
        self.best = KeepBest(2, WeightsWriter(self.model, str(folder)), "toy/AP", mode)
        self.stopping = None
        if patience is not None:
            self.stopping = EarlyStopping(2, "toy/AP", mode, patience, min_delta, self._before_stop)

        def evaluate():
            iteration = min(self.trainer.iter, steps - 1)
            self.evaluated.append(iteration)
            with torch.no_grad():
                self.model.weight.fill_(float(iteration))
            return {"toy": {"AP": values[iteration // 2]}}

        self.trainer.register_hooks(
            [
                d2.hooks.PeriodicCheckpointer(self.checkpointer, 2),
                d2.hooks.EvalHook(2, evaluate),
                self.best,
                self.stopping,
                CheckpointAfterEvaluation(self.checkpointer, 2),
            ]
        )
        self.steps = steps

    def _before_stop(self):
        self.checkpointer.save("model_final", iteration=self.trainer.iter)

    def go(self, steps=None, resume=False):
        start = 0
        if resume:
            self.checkpointer.resume_or_load("", resume=True)
            start = self.trainer.iter + 1
        try:
            self.trainer.train(start, steps or self.steps)
        except TrainingStopped:
            return "stopped"
        return "done"


class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return {"loss": self.inner(batch).sum()}


@pytest.fixture
def log(caplog, monkeypatch):
    """What elsa_det logs, also after a training in this process has set its log up."""
    monkeypatch.setattr(logging.getLogger("elsa_det"), "propagate", True)
    caplog.set_level(logging.INFO, logger="elsa_det")
    return caplog


def test_best_weights_are_kept(tmp_path):
    run = Run(tmp_path, RISING_AND_FALLING[:6], steps=12)
    assert run.go() == "done"
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert set(best) == {"model", "iteration"}
    assert (best["iteration"], best["model"]["weight"].item()) == (7, 7.0)
    assert (run.best.best_metric, run.best.best_iter) == (3.05, 7)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_stops_once_patience_is_used_up(tmp_path, log):
    run = Run(tmp_path, RISING_AND_FALLING, patience=3)
    assert run.go() == "stopped"
    # the best is 3.0 after iteration 3; 2.0, 3.05 (better by less than 0.1) and 2.5 are no improvement
    assert run.evaluated == [1, 3, 5, 7, 9]
    assert (run.stopping.best, run.stopping.waited) == (3.0, 3)
    assert "Stopping early after iteration 9: toy/AP has not improved by more than 0.1 in 3 evaluations" in log.text
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == final["trainer"]["iteration"] == 9
    assert final["trainer"]["hooks"]["EarlyStopping"] == {"metric": "toy/AP", "mode": "max", "best": 3.0, "waited": 3}
    assert not any(r.exc_info for r in log.records)  # a planned end is no failure

    again = Run(tmp_path, RISING_AND_FALLING, patience=3)
    again.checkpointer.resume_or_load("", resume=True)
    assert again.stopping.exhausted
    longer = Run(tmp_path, RISING_AND_FALLING, patience=4)
    assert longer.go(resume=True) == "stopped"  # 2.4 is the fourth without improvement
    assert longer.evaluated == [11]


@pytest.mark.parametrize("cut", [4, 6, 7])
def test_an_interrupted_run_knows_as_much(tmp_path, cut):
    """Cut after ``cut`` iterations, at a checkpoint or behind it, the run goes on as if it had not been."""
    whole = Run(tmp_path / "whole", RISING_AND_FALLING, patience=3)
    assert whole.go() == "stopped"

    parts = tmp_path / "parts"
    first = Run(parts, RISING_AND_FALLING, patience=3)
    first.trainer.register_hooks([Interrupt(cut)])
    with pytest.raises(KeyboardInterrupt):
        first.go()
    second = Run(parts, RISING_AND_FALLING, patience=3)
    assert second.go(resume=True) == "stopped"
    assert second.evaluated == [i for i in whole.evaluated if i >= cut // 2 * 2]
    assert second.stopping.state_dict() == whole.stopping.state_dict()
    assert (second.best.best_metric, second.best.best_iter) == (whole.best.best_metric, whole.best.best_iter)


class Interrupt(d2.HookBase):
    def __init__(self, after):
        self.after = after

    def after_step(self):
        if self.trainer.iter + 1 == self.after:
            raise KeyboardInterrupt


def test_a_prolonged_run_remembers_its_last_evaluation(tmp_path):
    values = [1.0, 5.0, 4.0, 3.0, 2.0]
    assert Run(tmp_path, values, patience=3, steps=4).go() == "done"
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == final["trainer"]["iteration"] == 3
    assert final["trainer"]["hooks"]["KeepBest"]["best_metric"] == 5.0
    longer = Run(tmp_path, values, patience=3, steps=100)
    assert longer.go(steps=100, resume=True) == "stopped"
    assert longer.evaluated == [5, 7, 9]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["model"]["weight"].item() == 3.0  # of the evaluation that gave 5.0


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "waited"),
    [
        ("max", 0.0, [1.0, 1.0, 1.0], [0, 1, 2]),
        ("max", 0.5, [1.0, 1.4, 1.6, 1.6], [0, 1, 0, 1]),
        ("min", 0.0, [3.0, 2.0, 2.5, 1.0], [0, 0, 1, 0]),
        ("max", 0.0, [math.nan, 1.0, math.inf, 2.0], [1, 0, 1, 0]),
    ],
)
def test_what_counts_as_improvement(mode, min_delta, values, waited):
    stopping = EarlyStopping(1, "m", mode, patience=9, min_delta=min_delta)
    seen = []
    for value in values:
        stopping.take(value)
        seen.append(stopping.waited)
    assert seen == waited


def test_the_best_of_another_metric_is_not_ours(log):
    stopping = EarlyStopping(1, "segm/AP")
    stopping.load_state_dict({"metric": "bbox/AP", "mode": "max", "best": 70.0, "waited": 2})
    assert (stopping.best, stopping.waited) == (None, 0)
    best = KeepBest(1, None, "loss", "min")
    best.load_state_dict({"metric": "loss", "mode": "max", "best_metric": 70.0, "best_iter": 2})
    assert best.best_metric is None
    assert log.text.count("it starts afresh") == 2


def test_names_of_metrics():
    results = {"bbox": {"AP": 1.0, "AP-disc": 2.0}, "segm": {"AP": 3.0}, "speed": 4.0}
    assert flat_names(results) == ["bbox/AP", "bbox/AP-disc", "segm/AP", "speed"]
    require_metrics(results, {"train.best.metric": "bbox/AP-disc"})
    with pytest.raises(UserError, match=r"train.best.metric=box/AP: .* no metric 'box/AP'; did you mean bbox/AP"):
        require_metrics(results, {"train.best.metric": "box/AP"})
    with pytest.raises(UserError, match="it gave none at all"):
        require_metrics({}, {"train.best.metric": "bbox/AP"})
