"""A run that was interrupted and resumed is the run that was not, bit for bit on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import torch
from resumed_run import Interrupted, act_at, interrupt, losses, run, same, write_data

from elsa_det.engine.stop_signals import REQUEUE

ITERATIONS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return [
        *write_data(tmp_path_factory.mktemp("shapes")),
        f"train.max_iter={ITERATIONS}",
        "train.checkpointer.period=3",
    ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *data)
    return folder


def test_losses_and_state_are_those_of_an_uninterrupted_run(data, whole, tmp_path, monkeypatch):
    options = [*data, "dataloader.train.num_workers=2"]
    interrupted = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        act_at(patch, 4, interrupt)
        with pytest.raises(Interrupted):
            run(interrupted, *options)
    assert sorted(losses(interrupted)) == [0, 1, 2, 3]
    run(interrupted, "--resume", *options, "train.seed=-1")  # all that is random comes from the checkpoint
    assert "Resumed exactly" in (interrupted / "log.txt").read_text()
    assert sorted(losses(whole)) == list(range(ITERATIONS))
    assert losses(interrupted) == losses(whole)
    states = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, interrupted)]
    exact = states[0]["trainer"]["hooks"]["ExactResume"]
    assert len({value for value, _ in exact["windows"]["total_loss"]}) == ITERATIONS  # as they are, not smoothed
    assert exact["data"]["batches"] == ITERATIONS
    assert same(*states)


def test_a_line_that_a_kill_prevented_is_written(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        act_at(patch, 3, interrupt)
        with pytest.raises(Interrupted):
            run(tmp_path, *data)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    metrics = tmp_path / "metrics.json"
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if json.loads(line)["iteration"] < 2]
    metrics.write_text("".join(lines))
    run(tmp_path, "--resume", *data)
    assert losses(tmp_path) == losses(whole)
    assert sorted(losses(tmp_path)) == list(range(ITERATIONS))


def to_all(number):
    """To this process and its workers, as batch systems do."""
    workers = multiprocessing.active_children()
    pids = " ".join(str(pid) for pid in [*(worker.pid for worker in workers), os.getpid()])
    subprocess.run(f"kill -{int(number)} {pids}", shell=True, check=True)  # from a process of its own
    time.sleep(0.2)
    assert all(worker.is_alive() for worker in workers)


def test_a_signal_saves_and_asks_to_be_started_again(data, whole, tmp_path, monkeypatch):
    for number, iteration in ((signal.SIGUSR1, 1), (signal.SIGTERM, 3)):
        with monkeypatch.context() as patch:
            act_at(patch, iteration, lambda number=number: to_all(number))
            with pytest.raises(SystemExit) as ended:
                run(tmp_path / "run", "--resume", *data, f"dataloader.train.num_workers={iteration - 1}")
        assert ended.value.code == REQUEUE == 75
        assert (tmp_path / "run" / "last_checkpoint").read_text() == f"model_{iteration:07d}.pth"
        assert signal.getsignal(number) == signal.SIG_DFL
    run(tmp_path / "run", "--resume", *data)
    assert losses(tmp_path / "run") == losses(whole)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "SIGUSR1: saved after iteration 1, to be gone on with by --resume" in log
    assert "SIGTERM: saved after iteration 3" in log
