"""The trainers: numbers of a step worked out by hand, the order of calls, states, failures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from elsa_det import d2


class Slope(nn.Module):
    """y = w·x with the two losses y and y/2, so that d(total)/dw = 1.5·x."""

    def __init__(self, w: float = 1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))
        self.grads_at_forward: list[float | None] = []

    def forward(self, x: float) -> dict[str, torch.Tensor]:
        self.grads_at_forward.append(None if self.w.grad is None else self.w.grad.item())
        return {"loss_y": self.w * x, "loss_half": self.w * x / 2}


def make(data, model=None, trainer=None, **kwargs):
    model = Slope() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return (trainer or d2.SimpleTrainer)(model, data, optimizer, **kwargs)


class Record(d2.HookBase):
    def __init__(self, calls):
        self.calls = calls

    def _note(self, moment):
        self.calls.append((moment, self.trainer.iter))
        assert self.trainer.storage.iter == self.trainer.iter

    def before_train(self):
        self._note("before_train")

    def before_step(self):
        self._note("before_step")

    def after_backward(self):
        self._note("after_backward")

    def after_step(self):
        self._note("after_step")

    def after_train(self):
        self._note("after_train")


def test_hooks_are_called_in_order():
    calls = []
    trainer = make([2.0, 2.0])
    trainer.register_hooks([None, Record(calls)])
    trainer.train(5, 7)
    step = ["before_step", "after_backward", "after_step"]
    expected = [("before_train", 5), *((m, 5) for m in step), *((m, 6) for m in step), ("after_train", 7)]
    assert calls == expected
    assert (trainer.start_iter, trainer.max_iter, trainer.iter) == (5, 7, 7)


def test_hooks_do_not_own_the_trainer():
    trainer, hook = make([1.0]), d2.HookBase()
    trainer.register_hooks([hook])
    del trainer
    with pytest.raises(ReferenceError):
        _ = hook.trainer.iter


def test_what_is_no_hook_is_refused():
    with pytest.raises((TypeError, AssertionError)):
        make([1.0]).register_hooks([lambda: None])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_numbers_of_two_steps(asynchronous):
    trainer = make([2.0, 4.0], async_write_metrics=asynchronous)
    trainer.train(0, 2)
    # w: 1 - 0.1·1.5·2 = 0.7, then 0.7 - 0.1·1.5·4 = 0.1
    assert trainer.model.w.item() == pytest.approx(0.1, abs=1e-6)
    values = {name: [v for v, _ in h.values()] for name, h in trainer.storage.histories().items()}
    assert values["loss_y"] == pytest.approx([2.0, 2.8])
    assert values["loss_half"] == pytest.approx([1.0, 1.4])
    assert values["total_loss"] == pytest.approx([3.0, 4.2])
    assert len(values["data_time"]) == len(values["rank_data_time"]) == 2
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [0, 1]


def test_a_single_loss_is_the_total():
    class One(Slope):
        def forward(self, x):
            return self.w * x

    trainer = make([3.0], One())
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"] == (3.0, 0)
    assert set(trainer.storage.latest()) == {"total_loss", "data_time", "rank_data_time"}
    assert trainer.model.w.item() == pytest.approx(0.7)


@pytest.mark.parametrize(("before", "seen"), [(True, [None, None]), (False, [None, pytest.approx(3.0)])])
def test_when_gradients_are_cleared(before, seen):
    trainer = make([2.0, 2.0], zero_grad_before_forward=before)
    trainer.train(0, 2)
    assert trainer.model.grads_at_forward == seen


def test_metrics_are_gathered_every_so_often():
    trainer = make([1.0] * 5, gather_metric_period=2)
    trainer.train(0, 5)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


def test_prefix_of_the_total():
    with d2.EventStorage() as storage:
        d2.SimpleTrainer.write_metrics({"a": torch.tensor(1.5), "b": torch.tensor(2.0)}, 0.25, 9, "aux_")
    latest = storage.latest()
    assert latest["aux_total_loss"] == (3.5, 9)
    assert latest["a"] == (1.5, 9)
    assert latest["data_time"] == latest["rank_data_time"] == (0.25, 9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(bad):
    calls = []
    trainer = make([1.0, bad, 1.0])
    trainer.register_hooks([Record(calls)])
    with pytest.raises(FloatingPointError, match="iteration=1"):
        trainer.train(0, 3)
    assert calls[-1] == ("after_train", 1)
    assert math.isfinite(trainer.model.w.item())  # the step was not taken


@pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="Detectron2 only logs what goes wrong in its thread")
@pytest.mark.parametrize("position", [0, 2])
def test_a_bad_loss_stops_asynchronous_training_too(position):
    data = [1.0, 1.0, 1.0]
    data[position] = math.nan
    with pytest.raises(FloatingPointError, match=f"iteration={position}"):
        make(data, async_write_metrics=True).train(0, 3)


def test_a_model_in_eval_mode_is_an_error():
    trainer = make([1.0])
    trainer.model.eval()
    with pytest.raises((RuntimeError, AssertionError), match="eval mode"):
        trainer.train(0, 1)


def test_data_loader_is_replaced():
    trainer = make([1.0, 1.0])
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: [5.0])
    with d2.EventStorage():
        trainer.run_step()
    # 1 - 0.15·1 - 0.15·5
    assert trainer.model.w.item() == pytest.approx(0.1)


class Counter(d2.HookBase):
    def __init__(self, count=0):
        self.count = count

    def after_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def test_state_goes_round():
    trainer = make([1.0] * 3)
    trainer.register_hooks([Counter(), Counter(100), d2.HookBase()])
    trainer.train(0, 3)
    state = trainer.state_dict()
    assert list(state) == ["iteration", "hooks", "optimizer"]
    assert state["iteration"] == 3
    assert state["hooks"] == {"Counter": {"count": 3}}  # of two hooks of a class, the first

    other, hook = make([1.0]), Counter()
    other.register_hooks([hook])
    other.load_state_dict({**state, "hooks": {**state["hooks"], "Gone": {"x": 1}}})
    assert (other.iter, hook.count) == (3, 3)
    assert "hooks" not in make([1.0]).state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_amp_needs_cuda():
    trainer = make([1.0], trainer=d2.AMPTrainer, precision=torch.bfloat16)
    with pytest.raises((RuntimeError, AssertionError), match="CUDA"):
        trainer.train(0, 1)


@pytest.mark.filterwarnings("ignore")
def test_amp_keeps_the_scaler_in_its_state():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = make([1.0], trainer=d2.AMPTrainer, grad_scaler=scaler)
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == 8.0
    other = make([1.0], trainer=d2.AMPTrainer, grad_scaler=torch.amp.GradScaler("cpu"))
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 8.0
    assert other.precision == torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_amp_step_on_cuda():
    model = Slope().cuda()
    trainer = make([torch.tensor(2.0, device="cuda")], model, d2.AMPTrainer, log_grad_scaler=True)
    trainer.train(0, 1)
    assert model.w.item() == pytest.approx(0.7, abs=1e-3)
    assert trainer.storage.latest()["[metric]grad_scaler"] == (65536.0, 0)


def test_amp_refuses_several_devices():
    with pytest.raises((ValueError, AssertionError), match=r"one device|single-process"):
        make([1.0], nn.DataParallel(Slope()), d2.AMPTrainer)
