"""Event storage and its writers."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from d2_access import d2_module

from elsa_det.d2 import CommonMetricPrinter, EventStorage, JSONWriter, TensorboardXWriter, get_event_storage


def test_storage_is_there_only_in_its_block():
    with pytest.raises((RuntimeError, AssertionError), match="EventStorage"):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage(7) as inner:
            assert get_event_storage() is inner
            assert inner.iter == 7
        assert get_event_storage() is outer
    assert not d2_module("utils.events").has_event_storage()


def test_scalars_and_smoothing():
    storage = EventStorage()
    for value in (5.0, 1.0, 3.0, 9.0):
        storage.put_scalar("loss", torch.tensor(value))
        storage.put_scalars(lr=value / 10, smoothing_hint=False)
        storage.step()
    storage.put_scalar("old", 4, cur_iter=1)
    assert storage.latest() == {"loss": (9.0, 3), "lr": (0.9, 3), "old": (4.0, 1)}
    assert storage.latest_with_smoothing_hint(3) == {"loss": (3.0, 3), "lr": (0.9, 3), "old": (4.0, 1)}
    assert storage.latest_with_smoothing_hint(4)["loss"] == (4.0, 3)
    assert storage.history("loss").values() == [(5.0, 0), (1.0, 1), (3.0, 2), (9.0, 3)]
    assert storage.smoothing_hints() == {"loss": True, "lr": False, "old": True}
    with pytest.raises(KeyError, match="accuracy"):
        storage.history("accuracy")
    with pytest.raises((ValueError, AssertionError), match="lr"):
        storage.put_scalar("lr", 1.0, smoothing_hint=True)


def test_window_counts_iterations_not_values():
    storage = EventStorage()
    for iteration in (0, 10, 11, 30):
        storage.iter = iteration
        storage.put_scalar("loss", iteration)
        storage.put_scalar("loss", iteration)
    assert [storage.count_samples("loss", window) for window in (1, 19, 20, 21, 31)] == [2, 2, 4, 6, 8]


def test_name_scope():
    storage = EventStorage()
    with storage.name_scope("rpn/"):
        storage.put_scalar("fg", 1)
        with storage.name_scope("inner"):
            storage.put_scalar("fg", 2)
        storage.put_scalar("bg", 3)
    storage.put_scalar("fg", 4)
    assert {name: value for name, (value, _) in storage.latest().items()} == {
        "rpn/fg": 1.0,
        "inner/fg": 2.0,
        "rpn/bg": 3.0,
        "fg": 4.0,
    }


def test_json_lines(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("before\n")
    writer = JSONWriter(str(path), window_size=2)
    with EventStorage(5) as storage:
        storage.put_scalar("loss", 1.0)
        storage.put_scalar("AP", 30.5, smoothing_hint=False, cur_iter=4)
        writer.write()
        storage.step()
        storage.put_scalar("loss", 2.0)
        writer.write()
        writer.write()
    writer.close()
    lines = path.read_text().splitlines()
    assert lines == [
        "before",
        '{"iteration": 5, "loss": 1.0}',
        '{"AP": 30.5, "iteration": 4}',
        '{"iteration": 6, "loss": 1.5}',
    ]
    assert json.loads(lines[-1]) == {"loss": 1.5, "iteration": 6}


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 0.5)
        storage.put_image("view", np.zeros((3, 4, 4), dtype=np.uint8))
        storage.put_histogram("weights", torch.tensor([0.0, 1.0, 1.0, 2.0]), bins=2)
        writer.write()
        writer.write()  # nothing new
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]
    assert events.Tags()["images"] == ["view"]
    (histogram,) = events.Histograms("weights")
    assert (histogram.step, histogram.histogram_value.sum) == (3, 4.0)


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def printed():
    logger, handler = logging.getLogger(d2_module("utils.events").__name__), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the line ends with the GPU memory")
def test_metric_printer(printed):
    printer = CommonMetricPrinter(max_iter=100, window_size=20)
    with EventStorage(9) as storage:
        storage.put_scalars(loss_cls=0.25, total_loss=1.23456, AP=3)
        storage.put_scalar("[metric]acc", 0.5)
        printer.write()
        storage.put_scalar("time", 2.0)
        storage.put_scalar("data_time", 0.125)
        storage.put_scalar("lr", 0.0123456789, smoothing_hint=False)
        printer.write()
        assert storage.latest()["eta_seconds"] == (180.0, 9)
        storage.iter = 100
        printer.write()  # after the end: nothing
    assert printed == [
        " iter: 9  loss_cls: 0.25  total_loss: 1.235  [metric]acc: 0.5   lr: N/A  ",
        " eta: 0:03:00  iter: 9  loss_cls: 0.25  total_loss: 1.235  [metric]acc: 0.5  time: 2.0000  last_time: 2.0000  "
        "data_time: 0.1250  last_data_time: 0.1250   lr: 0.012346  ",
    ]
