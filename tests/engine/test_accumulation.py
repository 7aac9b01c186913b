"""Several passes make one step: the gradients of the large batch, and nothing else counts differently."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elsa_det import d2, get_config
from elsa_det.engine.accumulation import (
    AccumulatingAMPTrainer,
    AccumulatingTrainer,
    make_trainer,
    micro_batch_loader,
)
from elsa_det.engine.gradients import ClipGradients


class Regression(nn.Module):
    """Two losses, both means over the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, batch):
        out = self.net(batch)
        return {"loss_a": out[:, 0].square().mean(), "loss_b": (out[:, 1] - 1).abs().mean()}


def batches(count, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, size, 5, generator=generator))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("passes", [2, 4])
def test_gradients_are_those_of_the_large_batch(passes):
    (whole,) = batches(1, 8)
    expected = Regression().double()
    sum(expected(whole.double()).values()).backward()
    model = Regression().double()
    parts = list(whole.double().chunk(passes))
    trainer = make_trainer(model, parts, sgd(model), amp=False, accumulate=passes)
    trainer.train(0, 1)
    assert type(trainer) is AccumulatingTrainer
    torch.testing.assert_close(gradients(model), gradients(expected), rtol=0, atol=1e-12)
    single = Regression()
    d2.SimpleTrainer(single, [whole], sgd(single)).train(0, 1)
    many = Regression()
    AccumulatingTrainer(many, list(whole.chunk(passes)), sgd(many), accumulate=passes).train(0, 1)
    torch.testing.assert_close(gradients(many), gradients(single), rtol=0, atol=1e-6)
    for one, other in zip(many.parameters(), single.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_iterations_losses_and_schedule_count_steps():
    data = batches(6, 4)
    model = Regression()
    trainer = AccumulatingTrainer(model, data, sgd(model, lr=0.0), accumulate=2)
    calls = []
    trainer.register_hooks(
        [d2.hooks.CallbackHook(after_step=lambda t: calls.append(t.iter)), d2.hooks.IterationTimer(warmup_iter=0)]
    )
    trainer.train(0, 3)
    assert calls == [0, 1, 2]
    with torch.no_grad():
        expected = [
            sum(float(sum(model(part).values())) for part in data[2 * step : 2 * step + 2]) / 2 for step in range(3)
        ]
    recorded = trainer.storage.history("total_loss").values()
    assert [iteration for _, iteration in recorded] == [0, 1, 2]
    assert [value for value, _ in recorded] == pytest.approx(expected, abs=1e-6)
    assert trainer.state_dict()["iteration"] == 3


def test_a_single_loss_and_one_pass():
    class Mean(Regression):
        def forward(self, batch):
            return sum(super().forward(batch).values())

    model = Mean()
    trainer = AccumulatingTrainer(model, batches(2, 4), sgd(model), accumulate=2)
    trainer.train(0, 1)
    assert set(trainer.storage.latest()) >= {"total_loss", "data_time"}
    assert type(make_trainer(model, [], sgd(model), amp=False)) is d2.SimpleTrainer
    with pytest.raises(ValueError, match="at least 1, got 0"):
        AccumulatingTrainer(model, [], sgd(model), accumulate=0)
    model.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        trainer.run_step()


def test_a_loss_that_is_not_finite_in_one_pass_ends_training():
    model = Regression()
    before = [p.detach().clone() for p in model.parameters()]
    data = batches(2, 4)
    data[0][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="infinite or NaN at iteration=0"):
        AccumulatingTrainer(model, data, sgd(model), accumulate=2).train(0, 1)
    for now, then in zip(model.parameters(), before):
        torch.testing.assert_close(now, then)


def test_clipping_sees_the_whole_step():
    model, expected = Regression(), Regression()
    (whole,) = batches(1, 8)
    sum(expected(whole).values()).backward()
    norm = gradients(expected).norm()
    optimizer = sgd(model)
    trainer = AccumulatingTrainer(model, list(whole.chunk(4)), optimizer, accumulate=4)
    trainer.register_hooks([ClipGradients(optimizer, 0.01)])
    trainer.train(0, 1)
    assert trainer.storage.latest()["grad_norm"][0] == pytest.approx(float(norm), rel=1e-5)
    torch.testing.assert_close(gradients(model), gradients(expected) * 0.01 / norm, rtol=1e-4, atol=1e-8)


def test_mixed_precision_scales_every_pass_and_steps_once(monkeypatch):
    """The CPU's scaler in place of CUDA's; autocast for CUDA does nothing here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: _Nothing())
    model, expected = Regression(), Regression()
    (whole,) = batches(1, 8)
    sum(expected(whole).values()).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = AccumulatingAMPTrainer(model, list(whole.chunk(2)), sgd(model), accumulate=2, grad_scaler=scaler)
    seen = []
    trainer.register_hooks([AfterBackward(lambda: seen.append(gradients(model).clone()))])
    trainer.train(0, 1)
    torch.testing.assert_close(seen[0], gradients(expected) * 1024, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gradients(model), gradients(expected), rtol=1e-5, atol=1e-6)  # unscaled by the step
    assert trainer.state_dict()["grad_scaler"]["scale"] == 1024.0


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class AfterBackward(d2.HookBase):
    def __init__(self, function):
        self.after_backward = function


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_mixed_precision_needs_cuda():
    model = Regression()
    trainer = AccumulatingAMPTrainer(
        model, batches(2, 4), sgd(model), accumulate=2, grad_scaler=torch.amp.GradScaler("cpu")
    )
    with pytest.raises(RuntimeError, match=r"no CUDA device: set train.amp.enabled=False"):
        trainer.train(0, 1)


def test_the_loader_gives_micro_batches():
    cfg = get_config("examples/gradient_accumulation")
    smaller = micro_batch_loader(cfg.dataloader.train, cfg.train.accumulate)
    assert (smaller.total_batch_size, cfg.dataloader.train.total_batch_size) == (4, 16)
    assert smaller.dataset.names.name == "coco_2017_train"  # interpolations still resolve
    assert micro_batch_loader(cfg.dataloader.train, 1) is cfg.dataloader.train
