"""What is not finite never reaches the weights: skipped, rolled back or stopped, written down, and counted."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from faulty import Faulty, batches, same, state

from elsa_det import d2
from elsa_det.engine.accumulation import AccumulatingTrainer, make_trainer
from elsa_det.engine.bad_numbers import BadNumbersError, BadNumbersOptions, NumberGuard
from elsa_det.engine.ema import EMA_KEY, ModelEMA
from elsa_det.engine.gradients import ClipGradients
from elsa_det.errors import UserError


class Probe(d2.HookBase):
    """The states of model, average and optimizer before each iteration, and the learning rates."""

    def __init__(self, model, ema, optimizer):
        self.parts, self.seen, self.rates = (model, ema.model, optimizer), [], []

    def before_step(self):
        model, average, optimizer = self.parts
        self.seen.append((state(model), state(average), copy.deepcopy(optimizer.state_dict()["state"])))
        self.rates.append(optimizer.param_groups[0]["lr"])


def train(folder, faults, *, accumulate=1, iterations=None, data=None, clip=None, **options):
    """Train over the batches; the probe has what was seen, also after training was stopped."""
    model = Faulty()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    guard = NumberGuard(BadNumbersOptions(**options), folder)
    data = batches(faults) if data is None else data
    trainer = make_trainer(model, data, optimizer, amp=False, accumulate=accumulate, guard=guard)
    ema = ModelEMA(model, 0.5, warmup=False)
    guard.also[EMA_KEY] = ema.checkpointable
    probe = Probe(model, ema, optimizer)
    clipping = ClipGradients(optimizer, clip) if clip else None
    trainer.register_hooks([probe, clipping, ema])
    trainer.probe, trainer.guard, trainer.average = probe, guard, ema.model
    trainer.error = None
    try:
        trainer.train(0, len(data) // accumulate if iterations is None else iterations)
    except BadNumbersError as error:
        trainer.error = str(error)
    return trainer


def written(folder):
    """The lines of the file of incidents, by iteration."""
    lines = [json.loads(line) for line in (folder / "bad_numbers.jsonl").read_text().splitlines()]
    found = {line["iteration"]: line for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("fault", ["nan", "gradient", "refuse"])
def test_a_skipped_step_changes_nothing(tmp_path, fault):
    trainer = train(tmp_path, [None, None, fault, None], action="skip", clip=1.0)
    weights, averages, moments = zip(*trainer.probe.seen)
    assert same(weights[2], weights[3])  # running statistics included
    assert same(averages[2], averages[3])
    assert all(torch.equal(moments[2][i][key], moments[3][i][key]) for i in moments[2] for key in moments[2][i])
    good = batches([None, None, fault, None])
    del good[2]
    without = train(tmp_path / "good", None, data=good, action="skip", clip=1.0)
    assert same(state(trainer.model), state(without.model))
    assert same(state(trainer.average), state(without.average))
    assert all(torch.isfinite(value).all() for value in state(trainer.average).values())
    recorded = trainer.storage.history("total_loss").values()
    assert [iteration for _, iteration in recorded] == [0, 1, 3]
    counted = trainer.storage.histories()
    assert counted["bad_numbers/total"].values() == [(1.0, 2), (1.0, 3)]
    assert counted["bad_numbers/in_a_row"].values() == [(1.0, 2), (0.0, 3)]


def test_the_check_changes_no_number(tmp_path):
    trainer = train(tmp_path, [None] * 4, action="rollback", snapshot_period=2)
    model = Faulty()
    plain = make_trainer(model, batches([None] * 4), torch.optim.AdamW(model.parameters(), lr=0.01), amp=False)
    assert type(plain) is d2.SimpleTrainer
    plain.train(0, 4)
    assert same(state(trainer.model), state(model))
    assert trainer.storage.history("loss_b").values() == plain.storage.history("loss_b").values()
    assert not (tmp_path / "bad_numbers.jsonl").exists()


def test_stop_is_the_default_and_says_what_to_do(tmp_path):
    trainer = train(tmp_path, [None, "nan", None])
    assert trainer.iter == 1
    assert same(state(trainer.model), trainer.probe.seen[1][0])
    assert trainer.error.startswith("Bad numbers at iteration 1: loss_a is nan; the batch is in ")
    assert f"{tmp_path}/bad_numbers.jsonl. Training stops; it did not reach" in trainer.error
    assert "train.bad_numbers.action=skip" in trainer.error
    assert "total_loss" in trainer.storage.latest()
    assert trainer.storage.latest()["total_loss"][1] == 0


def test_what_is_written(tmp_path):
    trainer = train(tmp_path, [None, "nan", "gradient", "refuse"], action="skip")
    assert trainer.error is None
    assert written(tmp_path).keys() == {1, 2, 3}
    first = written(tmp_path)[1]
    images = first.pop("passes")
    losses = first.pop("losses")
    assert losses.keys() == {"loss_a", "loss_b"}
    assert losses["loss_a"] == "nan"  # any reader of JSON takes it
    assert losses["loss_b"] > 0
    assert first == {
        "iteration": 1,
        "rank": 0,
        "processes": 1,
        "kind": "loss",
        "action": "skip",
        "total": 1,
        "in_a_row": 1,
        "error": "",
        "lr": [0.01],
        "grad_norm": None,
        "grad_scale": None,
        "bad_gradients": [],
    }
    ((_, second, _),) = images
    pixels = batches([None, "nan"])[1][1]["image"]
    assert second == {
        "file_name": "1_1.jpg",
        "image_id": 11,
        "height": 90,
        "width": 80,
        "image": {"shape": [5], "min": float(pixels.min()), "max": float(pixels.max()), "not_finite": 0},
        "instances": 2,
        "classes": [2, 1],
        "boxes": [[1.0] * 4, [1.0] * 4],
    }
    gradient, refused = written(tmp_path)[2], written(tmp_path)[3]
    assert (gradient["kind"], gradient["grad_norm"], gradient["bad_gradients"]) == ("gradient", "nan", ["head.bias"])
    assert (gradient["total"], gradient["in_a_row"]) == (2, 2)
    assert (refused["kind"], refused["losses"], refused["error"]) == ("forward", {}, "scores are not finite")


def test_a_file_that_cannot_be_written_is_said(tmp_path, caplog):
    (tmp_path / "bad_numbers.jsonl").mkdir()
    with caplog.at_level(logging.WARNING, "elsa_det"):
        trainer = train(tmp_path, ["nan", None], action="skip")
    assert trainer.error is None
    assert f"{tmp_path}/bad_numbers.jsonl could not be written: [Errno 21]" in caplog.messages[0]
    assert f"loss_a is nan; {tmp_path}/bad_numbers.jsonl could not be written. The step is left" in caplog.messages[1]


def test_many_in_a_row_stop(tmp_path):
    trainer = train(tmp_path, ["nan", None, "nan", "refuse", "gradient", None], action="skip", max_in_a_row=3)
    assert trainer.iter == 4
    assert "at iteration 4: the norm of the gradients is nan, though the losses are finite" in trainer.error
    assert "not finite are those of head.bias" in trainer.error
    assert "3 times in a row (train.bad_numbers.max_in_a_row)" in trainer.error
    assert written(tmp_path)[3]["action"] == "skip"
    assert written(tmp_path)[4]["action"] == "stop"
    trainer = train(tmp_path / "b", ["nan", None, "nan", None, "nan"], action="skip", max_in_a_row=2, max_total=3)
    assert (trainer.iter, trainer.guard.in_a_row) == (4, 1)
    assert "3 times in all (train.bad_numbers.max_total)" in trainer.error


def test_rollback_goes_back_to_the_last_snapshot(tmp_path):
    trainer = train(tmp_path, [None] * 5 + ["nan", None], action="rollback", snapshot_period=3)
    weights, averages, moments = zip(*trainer.probe.seen)
    assert not same(weights[3], weights[5])
    assert same(weights[6], weights[3])  # snapshots were made before the steps of iterations 0 and 3
    assert same(averages[6], averages[3])
    assert moments[6][0]["step"] == 3
    assert all(torch.equal(moments[6][i][key], moments[3][i][key]) for i in moments[3] for key in moments[3][i])
    assert trainer.error is None
    assert trainer.guard._snapshot.iteration == 6
    # data and iterations went on
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [0, 1, 2, 3, 4, 6]


def test_rollback_leaves_the_rates_to_the_schedule(tmp_path):
    trainer = train(tmp_path, [None, None], action="rollback")
    optimizer = trainer.optimizer
    optimizer.param_groups[0]["lr"] = 0.5
    trainer.guard._snapshot.restore()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert same(state(trainer.model), trainer.probe.seen[0][0])
    assert optimizer.state_dict()["state"] == {}


def test_rollback_with_nothing_to_go_back_to(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "elsa_det"):
        trainer = train(tmp_path, ["nan", None], action="rollback")
    assert same(trainer.probe.seen[0][0], trainer.probe.seen[1][0])
    assert "The step is left out: no good step to go back to" in caplog.messages[0]


@pytest.mark.parametrize("fault", ["nan", "gradient"])
@pytest.mark.parametrize("where", [0, 1])
def test_a_bad_pass_leaves_the_whole_step_out(tmp_path, fault, where):
    faults = [None, None, None, None, None, None]
    faults[2 + where] = fault
    trainer = train(tmp_path, faults, accumulate=2, action="skip")
    assert type(trainer) is AccumulatingTrainer
    assert same(trainer.probe.seen[1][0], trainer.probe.seen[2][0])
    good = batches(faults)
    del good[2:4]  # both micro-batches were taken
    assert same(state(trainer.model), state(train(tmp_path, None, data=good, accumulate=2).model))
    seen = [images[0]["file_name"] for images in written(tmp_path)[1]["passes"]]
    assert seen == (["2_0.jpg"] if fault == "nan" and where == 0 else ["2_0.jpg", "3_0.jpg"])


class Scaled(AccumulatingTrainer):
    """What an AMPTrainer does with its scaler, on the CPU."""

    def _add_gradients(self, loss):
        self.grad_scaler.scale(loss).backward()

    def _step_optimizer(self):
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def train_scaled(folder, faults, scale, **options):
    model = Faulty()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    guard = NumberGuard(BadNumbersOptions(**options), folder)
    trainer = Scaled(model, batches(faults), optimizer, accumulate=1, guard=guard)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.register_hooks([ClipGradients(optimizer, 1.0)])
    trainer.guard = guard
    trainer.train(0, len(faults))
    return trainer


def test_an_overflow_is_the_scalers_business(tmp_path):
    trainer = train_scaled(tmp_path, ["gradient", "gradient", None], 256.0, max_in_a_row=3)
    assert trainer.grad_scaler.get_scale() == 64.0
    assert trainer.guard.total == 0
    assert not (tmp_path / "bad_numbers.jsonl").exists()
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 1


def test_many_overflows_in_a_row_are_incidents(tmp_path):
    with pytest.raises(BadNumbersError, match=r"norm of the gradients \(scaled\) is nan"):
        train_scaled(tmp_path, ["gradient", "gradient", "gradient"], 256.0, max_in_a_row=3)
    assert (written(tmp_path)[2]["kind"], written(tmp_path)[2]["grad_scale"]) == ("overflow", 64.0)


def test_an_overflow_at_the_lowest_scale_is_an_incident(tmp_path):
    faults = ["gradient", "gradient", None, "nan", None]
    trainer = train_scaled(tmp_path, faults, 2.0, action="rollback", snapshot_period=1)
    assert trainer.guard.total == 2
    assert list(written(tmp_path)) == [1, 3]
    assert trainer.grad_scaler.get_scale() == 1.0
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 1  # that of iteration 2 was rolled back


def test_counters_go_with_checkpoints(tmp_path):
    trainer = train(tmp_path, ["nan", None, "nan"], action="skip")
    kept = trainer.state_dict()["hooks"]["NumberGuard"]
    assert kept == {"total": 2, "in_a_row": 1, "overflows_in_a_row": 0}
    other = NumberGuard(BadNumbersOptions(action="skip", max_in_a_row=2), tmp_path)
    model = Faulty()
    going_on = make_trainer(
        model, batches(["nan"]), torch.optim.SGD(model.parameters(), lr=0.1), amp=False, guard=other
    )
    going_on.load_state_dict(
        {"iteration": 2, "hooks": {"NumberGuard": kept}, "optimizer": going_on.optimizer.state_dict()}
    )
    with pytest.raises(BadNumbersError, match="2 times in a row"):
        going_on.train(3, 4)


def test_other_errors_of_the_model_are_its_own(tmp_path):
    with pytest.raises(KeyError, match="no such thing"):
        train(tmp_path, ["crash"], action="skip")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("action", "ignore", "action='ignore' must be 'stop', 'skip', 'rollback' or 'off'"),
        ("max_in_a_row", 0, "max_in_a_row=0 must be a whole number, at least 1"),
        ("max_total", True, "max_total=True must be"),
        ("snapshot_period", 1.5, "snapshot_period=1.5 must be"),
    ],
)
def test_options_are_checked(option, value, message):
    with pytest.raises(UserError, match=f"train.bad_numbers.{message}"):
        BadNumbersOptions(**{option: value})


def test_off_is_detectron2s_own_check():
    model = Faulty()
    guard = NumberGuard(BadNumbersOptions(action="off"), "never")
    trainer = make_trainer(model, batches(["nan"]), torch.optim.SGD(model.parameters(), lr=0.1), amp=False, guard=guard)
    assert type(trainer) is d2.SimpleTrainer
    with pytest.raises(FloatingPointError, match="infinite or NaN at iteration=0"):
        trainer.train(0, 1)
