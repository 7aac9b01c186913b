"""Clipping by value, with and without a gradient scaler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from elsa_det import d2
from elsa_det.engine.gradients import ClipGradients


class Line(nn.Module):
    """Its gradient is the batch itself."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {"loss": (self.w * batch).sum()}


def train(batch, max_norm, optimizer_class=torch.optim.SGD, **options):
    model = Line()
    optimizer = optimizer_class(model.parameters(), lr=1.0, **options)
    trainer = d2.SimpleTrainer(model, [torch.tensor(batch)], optimizer)
    trainer.register_hooks([ClipGradients(optimizer, max_norm)])
    trainer.train(0, 1)
    return model, trainer


@pytest.mark.parametrize(("max_norm", "moved"), [(1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0]), (math.inf, [-3.0, -4.0])])
def test_the_common_norm_is_clipped_and_recorded(max_norm, moved):
    model, trainer = train([3.0, 4.0], max_norm)
    assert model.w.tolist() == pytest.approx(moved, abs=1e-5)
    assert trainer.storage.latest()["grad_norm"] == (5.0, 0)


class Scaled(d2.SimpleTrainer):
    """What an AMPTrainer does with its scaler, on the CPU."""

    def run_step(self):
        self.optimizer.zero_grad()
        self.grad_scaler.scale(self.model(next(self._data_loader_iter))["loss"]).backward()
        self.after_backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def train_scaled(batch, max_norm, **options):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, **options)
    trainer = Scaled(model, [torch.tensor(batch)], optimizer)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer.register_hooks([ClipGradients(optimizer, max_norm)])
    trainer.train(0, 1)
    return model, trainer


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_clipped_at_their_true_size(fused):
    model, trainer = train_scaled([3.0, 4.0], 1.0, fused=fused)
    assert model.w.tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)
    assert trainer.storage.latest()["grad_norm"][0] == pytest.approx(5.0)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_is_left_to_the_scaler(fused):
    model, trainer = train_scaled([math.inf, 4.0], 1.0, fused=fused)
    assert model.w.tolist() == [0.0, 0.0]
    assert trainer.grad_scaler.get_scale() == 128.0
    assert "grad_norm" not in trainer.storage.latest()


class BrokenBackward(Line):
    def forward(self, batch):
        # sqrt has an infinite slope at 0: a finite loss with a gradient that is not
        return {"loss": (self.w * batch).abs().sum().sqrt()}


def test_broken_gradients_end_training_before_they_reach_the_weights():
    model = BrokenBackward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = d2.SimpleTrainer(model, [torch.tensor([1.0, 2.0])], optimizer)
    trainer.register_hooks([ClipGradients(optimizer, 1.0)])
    with pytest.raises(FloatingPointError, match="norm of the gradients is (inf|nan) at iteration 0"):
        trainer.train(0, 1)
    assert model.w.tolist() == [0.0, 0.0]


def test_a_loss_that_is_not_finite_is_told_as_such():
    with pytest.raises(FloatingPointError, match="Loss became infinite or NaN"):
        train([math.nan, 1.0], 1.0)
