"""How many checkpoints are kept, and how a training ends when a signal asks for it, with several processes too."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from elsa_det import d2
from elsa_det.checkpoint import SafeCheckpointer
from elsa_det.commands import train as command
from elsa_det.engine import launching
from elsa_det.engine.checkpoints import Checkpoints, prepare_folder
from elsa_det.engine.exact_resume import ExactResume
from elsa_det.engine.stop_signals import REQUEUE, Requeue, StopSignals, passed_to
from elsa_det.errors import UserError


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, batch):
        return {"loss": (self.net(batch) + torch.rand(1)).square().mean()}


def go(folder, steps, *, keep=None, resume=False, period=2, act=None):
    model = Regression()
    trainer = d2.SimpleTrainer(model, [torch.ones(2, 3)] * 100, torch.optim.SGD(model.parameters(), lr=0.1))
    exact, signals = ExactResume(model, None), StopSignals()
    checkpointer = SafeCheckpointer(model, str(folder), trainer=trainer)
    kept = Checkpoints(checkpointer, period, keep, signals=signals, before_save=exact.gather)
    trainer.register_hooks([d2.hooks.CallbackHook(before_step=act), exact, kept])
    if resume:
        checkpointer.resume_or_load("", resume=True)
    with signals.caught():
        trainer.train(trainer.iter + 1 if resume else 0, steps)


def files(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def test_the_last_are_kept_and_the_best(tmp_path):
    for name in ("model_0000001.pth", "model_best.pth"):
        (tmp_path / name).write_text("of an earlier run, of no concern")
    go(tmp_path, 7, keep=2, period=3)
    assert files(tmp_path) == [
        *("model_0000001.pth", "model_0000002.pth", "model_0000005.pth"),
        *("model_best.pth", "model_final.pth"),
    ]
    # those of the run that is resumed count
    go(tmp_path, 13, keep=2, resume=True, period=3)
    assert files(tmp_path) == ["model_0000008.pth", "model_0000011.pth", "model_best.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_final_checkpoint_that_a_kill_prevented(tmp_path):
    go(tmp_path, 4)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    go(tmp_path, 4, resume=True)
    again = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert again["iteration"] == again["trainer"]["iteration"] == 3
    assert torch.equal(again["model"]["net.weight"], final["model"]["net.weight"])
    random = [held["trainer"]["hooks"]["ExactResume"]["random"][0]["torch"] for held in (final, again)]
    assert torch.equal(*random)


def test_what_is_half_written_is_cleared_away(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("elsa_det"), "propagate", True)
    (tmp_path / "model_0000005.pth.part").write_text("half")
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"itera')
    prepare_folder(tmp_path)
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 1}\n'
    assert files(tmp_path) == [] == list(tmp_path.glob("*.part"))
    assert "1 checkpoint(s) whose writing was interrupted are removed: model_0000005.pth.part" in caplog.text
    caplog.clear()
    prepare_folder(tmp_path)
    assert caplog.text == ""


def test_a_disk_that_is_full_in_a_training(tmp_path, monkeypatch):
    def save(self, name, **_):
        raise UserError(f"{name} could not be written")

    monkeypatch.setattr(SafeCheckpointer, "save", save)
    with pytest.raises(UserError, match="model_0000001 could not be written"):
        go(tmp_path, 3)


def test_a_signal_in_the_last_iteration_changes_nothing(tmp_path):
    def act(trainer):
        if trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    go(tmp_path, 3, act=act)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def worker(args: argparse.Namespace) -> None:
    """A signal to one process ends both; then they go on, and one to the process that started them does."""
    folder = args.opts[0].partition("=")[2]
    logging.disable(logging.WARNING)
    rank = d2.comm.get_rank()
    torch.manual_seed(rank)
    ends = []
    for receiver in (os.getpid(), os.getppid()):

        def act(trainer, receiver=receiver, ends=ends):
            d2.comm.synchronize()
            if trainer.iter == trainer.start_iter + 2 and rank == 1:
                os.kill(receiver, signal.SIGUSR1)
            ends.append(trainer.iter)

        try:
            go(folder, 1000, resume=bool(ends), act=act)
            raise AssertionError("no signal came")
        except Requeue:
            Path(folder, f"{rank}_{receiver == os.getppid()}.json").write_text(json.dumps(ends[-1]))
    raise SystemExit(REQUEUE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_two_processes_end_with_the_same_iteration(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "train_or_evaluate", worker)
    monkeypatch.setattr(launching, "_START_METHOD", "fork")
    config = ["--config-file", "quickstart/elsa_nano_mrcnn.py", "--num-gpus", "2", f"train.output_dir={tmp_path}"]
    assert command.main(config) == REQUEUE
    ends = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert ends["0_False"] == ends["1_False"] == 2
    assert ends["0_True"] == ends["1_True"] >= 5
    held = torch.load(tmp_path / f"model_{ends['0_True']:07d}.pth", weights_only=True)["trainer"]
    assert held["iteration"] == ends["0_True"]
    states = [state["torch"] for state in held["hooks"]["ExactResume"]["random"]]
    assert len(states) == 2
    assert not torch.equal(*states)  # each process has its own


def test_averages_that_are_plain_numbers(tmp_path):
    """Those of RetinaNet, which its state_dict does not have."""
    seen = []

    def act(trainer):
        net = trainer.model.net
        net.loss_normalizer = 0.5 * getattr(net, "loss_normalizer", 100.0)
        seen.append(net.loss_normalizer)

    go(tmp_path, 4, act=act)
    go(tmp_path, 6, act=act, resume=True)
    assert seen == [50.0, 25.0, 12.5, 6.25, 3.125, 1.5625]


def test_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with passed_to([]), StopSignals().caught():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_exit_codes_are_not_taken_for_it(monkeypatch):
    def ends(_):
        raise SystemExit(3)

    monkeypatch.setattr(command, "train_or_evaluate", ends)
    with pytest.raises(SystemExit) as ended:
        command.main(["--config-file", "quickstart/elsa_nano_mrcnn.py"])
    assert ended.value.code == 3
