"""A run that was interrupted and resumed is the run that was not, bit for bit on the CPU."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from resumed_run import CONFIG, losses, same, write_data

from elsa_det.d2 import default_argument_parser
from elsa_det.engine import training
from elsa_det.engine.gradients import ClipGradients
from elsa_det.engine.stop_signals import REQUEUE
from elsa_det.engine.training import main

ITERATIONS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return [
        *write_data(tmp_path_factory.mktemp("shapes")),
        f"train.max_iter={ITERATIONS}",
        "train.checkpointer.period=3",
    ]


def run(folder, *options):
    args = default_argument_parser().parse_args(["--config-file", CONFIG, *options, f"train.output_dir={folder}"])
    return main(args)


class Interrupted(BaseException):
    pass


def act_at(monkeypatch, iteration, act):
    """Within the pass of that iteration, do something."""
    original = ClipGradients.after_backward

    def after_backward(self):
        if self.trainer.iter == iteration:
            act()
        original(self)

    monkeypatch.setattr(ClipGradients, "after_backward", after_backward)


def interrupt():
    raise Interrupted


SWITCHES = {
    "plain": [],
    "everything": [
        *("train.ema.enabled=True", "train.accumulate=2", "dataloader.train.total_batch_size=4", "train.eval_period=2"),
        *("train.best.metric=bbox_EMA/AP", "train.early_stopping.metric=segm/AP"),
        *("train.early_stopping.patience=2", "train.early_stopping.min_delta=100"),
    ],
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *data)
    return folder


@pytest.mark.parametrize(("workers", "switches"), [(2, "plain"), (0, "everything")])
def test_losses_and_state_are_those_of_an_uninterrupted_run(data, whole, tmp_path, monkeypatch, workers, switches):
    options = [*data, *SWITCHES[switches]]
    if switches == "everything":
        whole = tmp_path / "whole"
        run(whole, *options)
    options.append(f"dataloader.train.num_workers={workers}")
    interrupted = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        act_at(patch, 4, interrupt)
        with pytest.raises(Interrupted):
            run(interrupted, *options)
    assert sorted(losses(interrupted)) == [0, 1, 2, 3]
    run(interrupted, "--resume", *options, "train.seed=-1")  # all that is random comes from the checkpoint
    assert "Resumed exactly" in (interrupted / "log.txt").read_text()
    done = 6 if switches == "everything" else ITERATIONS  # it stops early
    assert sorted(losses(whole)) == list(range(done))
    assert losses(interrupted) == losses(whole)
    states = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, interrupted)]
    exact = states[0]["trainer"]["hooks"]["ExactResume"]
    assert len({value for value, _ in exact["windows"]["total_loss"]}) == done  # as they are, not smoothed
    assert exact["data"]["batches"] == done * (2 if switches == "everything" else 1)
    assert same(*states)


def test_a_signal_saves_and_asks_to_be_started_again(data, whole, tmp_path, monkeypatch):
    for number, iteration in ((signal.SIGTERM, 1), (signal.SIGUSR1, 4)):
        with monkeypatch.context() as patch:
            act_at(patch, iteration, lambda number=number: os.kill(os.getpid(), number))
            with pytest.raises(SystemExit) as ended:
                run(tmp_path / "run", *(["--resume"] if iteration > 1 else []), *data)
        assert ended.value.code == REQUEUE == 75
        assert (tmp_path / "run" / "last_checkpoint").read_text() == f"model_{iteration:07d}.pth"
        assert signal.getsignal(number) == signal.SIG_DFL
    run(tmp_path / "run", "--resume", *data)
    assert losses(tmp_path / "run") == losses(whole)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "SIGTERM: saved after iteration 1, to be gone on with by --resume" in log
    assert "SIGUSR1: saved after iteration 4" in log


def test_an_evaluation_that_was_missed_is_made_up_for(data, tmp_path, monkeypatch):
    """Killed while it evaluates, right behind the checkpoint; early stopping counts as without the kill."""
    options = [*data, *SWITCHES["everything"], "train.checkpointer.period=2", "train.accumulate=1"]
    run(tmp_path / "whole", *options)
    killed = tmp_path / "killed"
    evaluate = training.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *args, **kwargs: interrupt())
        with pytest.raises(Interrupted):
            run(killed, *options)
    assert training.evaluate is evaluate
    assert (killed / "last_checkpoint").read_text() == "model_0000001.pth"
    run(killed, "--resume", *options)
    assert "The evaluation after iteration 1 was missed and is made up for" in (killed / "log.txt").read_text()
    assert sorted(losses(killed)) == [0, 1, 2, 3, 4, 5]
    assert losses(killed) == losses(tmp_path / "whole")
    for name in ("model_0000001", "model_final"):
        states = [torch.load(folder / f"{name}.pth", weights_only=True) for folder in (tmp_path / "whole", killed)]
        assert states[0]["trainer"]["hooks"]["EarlyStopping"]["best"] is not None
        assert same(*states)
