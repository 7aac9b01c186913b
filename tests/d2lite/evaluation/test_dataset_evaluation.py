"""The evaluation loop, and what is done with results."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Dropout()
        self.modes: list[bool] = []

    def forward(self, batch):
        self.modes.append(self.training)
        assert not torch.is_grad_enabled()
        return [2 * value for value in batch]


class Sum(d2.DatasetEvaluator):
    def __init__(self, name="sum"):
        self.name, self.resets = name, 0

    def reset(self):
        self.resets += 1
        self.total = 0

    def process(self, inputs, outputs):
        self.total += sum(inputs) + sum(outputs)

    def evaluate(self):
        return {self.name: {"value": self.total}}


def test_every_batch_is_seen_in_eval_mode():
    model, evaluator = Double(), Sum()
    results = d2.inference_on_dataset(model, [[1, 2], [3]], evaluator)
    assert results == {"sum": {"value": 3 * (1 + 2 + 3)}}
    assert evaluator.resets == 1
    assert model.modes == [False, False]
    assert model.training
    assert model.part.training


def test_several_evaluators_none_and_a_function():
    def double(batch):
        return [2 * value for value in batch]

    both = [Sum("a"), Sum("b")]
    assert d2.inference_on_dataset(double, [[1]], both) == {"a": {"value": 3}, "b": {"value": 3}}
    assert d2.inference_on_dataset(double, [[1]], None) == {}
    assert d2.inference_on_dataset(double, [], Sum()) == {"sum": {"value": 0}}


def test_an_evaluator_without_result():
    assert d2.inference_on_dataset(lambda batch: batch, [[1]], d2.DatasetEvaluator()) == {}


def test_callbacks_come_around_each_batch():
    calls = []
    moments = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {moment: lambda moment=moment: calls.append(moment) for moment in moments}
    d2.inference_on_dataset(lambda batch: calls.append(batch), [1, 2], None, callbacks)
    each = ["before_inference", 1, "after_inference", "before_inference", 2, "after_inference"]
    assert calls == ["on_start", *each, "on_end"]


def test_evaluators_must_not_report_the_same_task():
    evaluators = d2.DatasetEvaluators([Sum("a"), Sum("a")])
    evaluators.reset()
    with pytest.raises((ValueError, AssertionError), match="a"):
        evaluators.evaluate()


def test_modes_are_restored():
    model = Double()
    with d2.inference_context(model):
        assert not model.training
        assert not model.part.training
    assert model.part.training
    model.eval()
    with d2.inference_context(model):
        pass
    assert not model.training


@pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="Detectron2 leaves the model in eval mode")
def test_modes_are_restored_after_a_failure():
    model = Double()
    with pytest.raises(ZeroDivisionError), d2.inference_context(model):
        _ = 1 / 0
    assert model.training


@pytest.fixture
def log(caplog, monkeypatch):
    """Messages of the modules of evaluation, whatever handlers their loggers have."""
    for name in ("evaluator", "testing"):
        logger = logging.getLogger(d2_module(f"evaluation.{name}").__name__)
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "handlers", [caplog.handler])
        caplog.set_level(logging.INFO, logger=logger.name)
    return caplog


def test_speed_is_logged(log, monkeypatch):
    progress = []
    module = d2_module("evaluation.evaluator")
    monkeypatch.setattr(module, "log_every_n_seconds", lambda level, message, n: progress.append(message))
    d2.inference_on_dataset(lambda batch: batch, [[1]] * 12, None)
    assert [line.split(".")[0] for line in progress] == ["Inference done 11/12", "Inference done 12/12"]
    for part in (" Dataloading: 0.0", " Inference: 0.0", " Eval: 0.0", " Total: 0.0", "s/iter. ETA=0:00:00"):
        assert part in progress[0]
    text = log.text
    assert "Start inference on 12 batches" in text
    assert "Total inference time: 0:00:00" in text
    assert "s / iter per device, on 1 devices)" in text


def test_results_for_a_spreadsheet(log):
    d2.print_csv_format({"bbox": {"AP": 12.34567, "AP50": math.nan, "AP-cat": 1.0}, "seconds": 3})
    assert log.messages == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,nan",
        "copypaste: seconds=3",
    ]


def test_results_are_flattened():
    flatten = d2_module("evaluation.testing").flatten_results_dict
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a/b/c": 1, "a/d": 2, "e": 3}
