"""Moving average, accumulation, best checkpoint and early stopping, across an interruption: as if there was none."""

from __future__ import annotations

import pytest
import torch
from resumed_run import Interrupted, act_at, interrupt, losses, run, same, write_data

from elsa_det.engine import training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return [
        *write_data(tmp_path_factory.mktemp("shapes")),
        *("train.max_iter=7", "train.checkpointer.period=2"),
        *("train.ema.enabled=True", "train.accumulate=2", "dataloader.train.total_batch_size=4", "train.eval_period=2"),
        *("train.best.metric=bbox_EMA/AP", "train.early_stopping.metric=segm/AP"),
        *("train.early_stopping.patience=2", "train.early_stopping.min_delta=100"),
    ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *data)
    return folder


@pytest.fixture(params=["in a step", "in an evaluation"])
def killed(request, data, tmp_path, monkeypatch):
    """A run that was interrupted with a checkpoint of iteration 1; in an evaluation: the one that was due with it."""
    with monkeypatch.context() as patch:
        if request.param == "in a step":
            act_at(patch, 3, interrupt)
        else:
            patch.setattr(training, "evaluate", lambda *args, **kwargs: interrupt())
        with pytest.raises(Interrupted):
            run(tmp_path, *data)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    return tmp_path, request.param == "in an evaluation"


def test_all_is_as_without_the_interruption(data, whole, killed):
    folder, missed = killed
    run(folder, "--resume", *data)
    log = (folder / "log.txt").read_text()
    assert ("The evaluation after iteration 1 was missed and is made up for" in log) == missed
    assert sorted(losses(folder)) == [0, 1, 2, 3, 4, 5]  # it stops early
    assert losses(folder) == losses(whole)
    for name in ("model_0000001", "model_final"):
        states = [torch.load(place / f"{name}.pth", weights_only=True) for place in (whole, folder)]
        hooks = states[0]["trainer"]["hooks"]
        assert hooks["EarlyStopping"]["best"] is not None
        assert len(hooks["ExactResume"]["windows"]["total_loss"]) == states[0]["iteration"] + 1
        assert hooks["ExactResume"]["data"]["batches"] == 2 * (states[0]["iteration"] + 1)
        assert same(*states)
