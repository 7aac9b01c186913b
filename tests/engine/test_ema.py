"""The moving average by value: updates, warm-up, buffers, saving and going on."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from elsa_det import d2
from elsa_det.engine.ema import EMA_KEY, ModelEMA, WeightsWriter


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.fc = nn.Linear(3, 4)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, batch):
        return {"loss": (self.bn(self.fc(batch)) * torch.arange(4)).square().mean()}


def batches(count):
    return list(torch.randn(count, 6, 3, generator=torch.Generator().manual_seed(0)))


def trainer_with(model, data, **options):
    trainer = d2.SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    ema = ModelEMA(model, **options)
    history = []
    record = d2.hooks.CallbackHook(
        after_step=lambda _: history.append({k: v.clone() for k, v in model.state_dict().items()})
    )
    trainer.register_hooks([record, ema])
    return trainer, ema, history


@pytest.mark.parametrize("warmup", [False, True])
def test_average_of_weights_and_buffers(warmup):
    trainer, ema, history = trainer_with(Net(), batches(8), decay=0.6, warmup=warmup)
    trainer.train(0, 8)
    for name, averaged in ema.model.state_dict().items():
        if not averaged.is_floating_point():
            assert averaged.item() == history[-1][name].item() == 8  # batches that the norm has seen
            continue
        expected = history[0][name]
        for iteration, state in enumerate(history[1:], start=2):
            decay = min(0.6, 1 - iteration ** (-2 / 3)) if warmup else 0.6
            expected = decay * expected + (1 - decay) * state[name]
        torch.testing.assert_close(averaged, expected)
    for name in ("fc.weight", "bn.weight", "bn.running_var"):
        assert not torch.allclose(ema.model.state_dict()[name], history[-1][name])
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_it_is_saved_and_goes_on_exactly(tmp_path):
    straight, whole, _ = trainer_with(Net(), batches(6), decay=0.9)
    straight.train(0, 6)

    first, ema, _ = trainer_with(Net(), batches(6), decay=0.9)
    checkpointer = d2.DetectionCheckpointer(first.model, str(tmp_path), trainer=first, **{EMA_KEY: ema.checkpointable})
    first.register_hooks([d2.hooks.PeriodicCheckpointer(checkpointer, 3)])
    first.train(0, 3)
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert set(saved) >= {"model", "trainer", "ema_state"}
    assert "hooks" not in saved["trainer"]  # the average is kept once

    second, again, _ = trainer_with(Net(), batches(6)[3:], decay=0.9)
    checkpointer = d2.DetectionCheckpointer(
        second.model, str(tmp_path), trainer=second, **{EMA_KEY: again.checkpointable}
    )
    checkpointer.resume_or_load("", resume=True)
    again.settle_after_resume(checkpointer.get_checkpoint_file())
    second.train(second.iter + 1, 6)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.fixture
def log(caplog, monkeypatch):
    """What elsa_det logs, also after a training in this process has set its log up."""
    monkeypatch.setattr(logging.getLogger("elsa_det"), "propagate", True)
    caplog.set_level(logging.INFO, logger="elsa_det")
    return caplog


def test_a_checkpoint_without_an_average_starts_one(log):
    model = Net()
    ema = ModelEMA(model, 0.9)
    with torch.no_grad():
        model.fc.weight.fill_(7.0)
    ema.settle_after_resume("old.pth")
    assert "old.pth has no ema_state: the moving average starts from its weights" in log.text
    assert ema.model.fc.weight.unique().tolist() == [7.0]


def test_final_weights_are_a_models_and_not_what_resume_takes(tmp_path):
    model = Net()
    trainer, ema, _ = trainer_with(model, batches(4), decay=0.9, output_dir=str(tmp_path))
    checkpointer = d2.DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([d2.hooks.PeriodicCheckpointer(checkpointer, 100)])
    trainer.train(0, 4)
    written = torch.load(tmp_path / "model_final_ema.pth", weights_only=True)
    assert (set(written), written["iteration"]) == ({"model", "iteration"}, 3)
    for name, value in written["model"].items():
        torch.testing.assert_close(value, ema.model.state_dict()[name])
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    WeightsWriter(model, str(tmp_path)).save("other")
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
