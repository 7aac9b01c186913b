"""What the event storage keeps, and what its writers write."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import types
from unittest import mock

import torch
from d2_access import d2_module
from fidelity.harness import case, error_of, folder, generator, log_lines

from elsa_det import d2


def filled(storage) -> None:
    """Twelve iterations of noisy and plain scalars."""
    values = torch.rand(12, 3, generator=generator(1)).tolist()
    for iteration, (loss, other, rate) in enumerate(values):
        storage.iter = iteration + 5
        storage.put_scalar("loss_cls", loss)
        storage.put_scalars(total_loss=loss + other, lr=rate, smoothing_hint=False)
        if iteration % 3 == 0:
            storage.put_scalar("[metric]rare", torch.tensor(other), cur_iter=iteration)
        storage.put_scalars(time=0.25 + iteration**2 / 64, data_time=0.125, rank_data_time=0.5)


@case(
    "EventStorage",
    "get_event_storage",
    what="histories, latest and smoothed values, scopes, iterations, images, histograms, nesting; errors",
)
def storage():
    with d2.EventStorage(3) as outer:
        filled(outer)
        with outer.name_scope("scope"):
            outer.put_scalar("inside", 2)
            outer.put_scalars(a=1.5, b=False)
            with outer.name_scope("again/"):
                outer.put_scalar("deeper", 3)
        outer.put_image("picture", torch.arange(12).reshape(3, 2, 2))
        outer.put_histogram("weights", torch.linspace(-1, 2, 50), bins=5)
        outer.step()
        with d2.EventStorage() as inner:
            nested = [d2.get_event_storage() is inner, inner.iter]
            inner.step()
        image, histogram = outer._vis_data[0], outer._histograms[0]
        out = {
            "latest": {name: list(pair) for name, pair in sorted(outer.latest().items())},
            "smoothed": {name: list(pair) for name, pair in sorted(outer.latest_with_smoothing_hint(5).items())},
            "counts": {name: outer.count_samples(name, 7) for name in ("loss_cls", "[metric]rare")},
            "history": list(outer.history("loss_cls").values()),
            "medians": [outer.history("loss_cls").median(n) for n in (3, 4, 20)],
            "averages": [outer.histories()["total_loss"].avg(4), outer.histories()["total_loss"].global_avg()],
            "nested": [*nested, d2.get_event_storage() is outer, outer.iter],
            "image": [image[0], torch.as_tensor(image[1]).float(), image[2]],
            "histogram": histogram,
        }
        outer.clear_images()
        outer.clear_histograms()
        out["errors"] = [
            error_of(lambda: outer.put_scalar("loss_cls", 1.0, smoothing_hint=False)),
            error_of(lambda: outer.history("unknown")),
            error_of(lambda: outer.put_scalar("text", "x")),
        ]
        out["cleared"] = [len(outer._vis_data), len(outer._histograms)]
    out["outside"] = error_of(d2.get_event_storage)
    out["has"] = d2_module("utils.events").has_event_storage()
    return out


@case("JSONWriter", "EventWriter", what="the lines of the file, window of 20 and of 3, opened again; the bare writer")
def json_lines():
    out: dict = {}
    with folder() as at, d2.EventStorage(3) as storage:
        for window in (20, 3):
            writer = d2.JSONWriter(str(at / f"{window}.json"), window_size=window)
            for start in range(2):
                filled(storage)
                storage.put_scalar("new", start, cur_iter=30 + start)
                writer.write()
            writer.write()  # nothing new
            writer.close()
            again = d2.JSONWriter(str(at / f"{window}.json"))
            again.write()
            again.close()
            lines = (at / f"{window}.json").read_text().splitlines()
            out[str(window)] = [json.loads(line) for line in lines]
            out[f"text_{window}"] = lines[0]
    out["bare"] = [error_of(d2.EventWriter().write), error_of(d2.EventWriter().close)]
    out["kinds"] = [issubclass(each, d2.EventWriter) for each in (d2.JSONWriter, d2.TensorboardXWriter)]
    return out


class Recorder:
    """In place of tensorboard's writer: what was asked of it."""

    made: list[Recorder]

    def __init__(self, *arguments, **options) -> None:
        self.calls: list = [["made", *arguments, *sorted(map(str, options.values()))]]
        Recorder.made.append(self)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: self.calls.append([name, *arguments, options])


@case("TensorboardXWriter", what="the calls of tensorboard's writer: scalars, images, histograms, options; clearing")
def tensorboard_calls():
    Recorder.made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Recorder
    with mock.patch.dict(sys.modules, {"torch.utils.tensorboard": module}), d2.EventStorage(3) as storage:
        writer = d2.TensorboardXWriter("somewhere", window_size=4, flush_secs=77)
        unused = d2.TensorboardXWriter("elsewhere")
        unused.close()
        filled(storage)
        storage.put_image("picture", torch.arange(12).reshape(3, 2, 2))
        storage.put_histogram("weights", torch.linspace(-1, 2, 50), bins=4)
        writer.write()
        writer.write()
        left = [len(storage._vis_data), len(storage._histograms)]
        storage.put_scalar("late", 4.0)
        writer.write()
        storage.step()
        storage.put_scalar("late", 5.0)
        writer.write()
        writer.close()
    calls = [
        [[torch.as_tensor(a).float() if hasattr(a, "shape") else a for a in call] for call in m.calls]
        for m in Recorder.made
    ]
    return {"calls": calls, "left": left}


@case(
    "CommonMetricPrinter", what="the lines of the log with and without times and rates, at the end, and its own clock"
)
def printed():
    out: dict = {}
    with mock.patch("torch.cuda.is_available", return_value=False):
        for name, options in {
            "usual": {"max_iter": 5000},
            "window": {"max_iter": 40, "window_size": 3},
            "open": {},
        }.items():
            with log_lines() as lines, d2.EventStorage(3) as storage:
                filled(storage)
                writer = d2.CommonMetricPrinter(**options)
                writer.write()
                out[name] = list(lines)
                out[f"{name}_stored"] = sorted(storage.latest())
        with log_lines() as lines, d2.EventStorage(3) as storage:
            writer = d2.CommonMetricPrinter(100)
            with mock.patch("time.perf_counter", side_effect=lambda: 1.5 * storage.iter):
                for _ in range(3):
                    storage.put_scalar("loss", 1.5)
                    writer.write()
                    storage.iter += 2
            out["own_clock"] = list(lines)
        with log_lines() as lines, d2.EventStorage(8) as storage, contextlib.suppress(StopIteration):
            d2.CommonMetricPrinter(8).write()
            out["over"] = list(lines)
    # how wide the blanks are says nothing
    return {key: [re.sub(r"\s+", " ", text).strip() for text in lines] for key, lines in out.items()}
