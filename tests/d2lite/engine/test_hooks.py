"""Each hook on a toy training, with the iterations at which it acts."""

from __future__ import annotations

import math

import pytest
import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from elsa_det import d2
from elsa_det.d2 import hooks


class Loop(d2.TrainerBase):
    """A trainer whose steps put given metrics."""

    def __init__(self, metrics=()):
        super().__init__()
        self.metrics = dict(metrics)  # iteration → {name: value}
        self.steps: list[int] = []

    def run_step(self):
        self.steps.append(self.iter)
        for name, value in self.metrics.get(self.iter, {}).items():
            self.storage.put_scalar(name, value, smoothing_hint=False)


def run(*registered, steps=10, start=0, metrics=()):
    loop = Loop(metrics)
    loop.register_hooks(list(registered))
    loop.train(start, steps)
    return loop


def run_and_fail(*registered, at, steps):
    class Failing(Loop):
        def run_step(self):
            if self.iter == at:
                raise ArithmeticError("on purpose")

    loop = Failing()
    loop.register_hooks(list(registered))
    with pytest.raises(ArithmeticError):
        loop.train(0, steps)


def test_callbacks():
    calls = []
    moments = ("before_train", "before_step", "after_step", "after_train")
    callbacks = {m: lambda trainer, m=m: calls.append((m, trainer.iter)) for m in moments}
    run(hooks.CallbackHook(**callbacks), hooks.CallbackHook(), steps=2)
    steps = [(moment, i) for i in range(2) for moment in ("before_step", "after_step")]
    assert calls == [("before_train", 0), *steps, ("after_train", 2)]


def test_timer_leaves_out_the_warmup():
    loop = run(hooks.IterationTimer(warmup_iter=3), steps=6, start=1)
    times = loop.storage.history("time").values()
    assert [iteration for _, iteration in times] == [3, 4, 5]  # from the third iteration of this run on
    assert all(0 <= seconds < 1 for seconds, _ in times)


class Writer(d2.EventWriter):
    def __init__(self):
        self.writes, self.closed = [], 0

    def write(self):
        self.writes.append(d2.get_event_storage().iter)

    def close(self):
        self.closed += 1


def test_writers_write_periodically_and_at_the_end():
    writer = Writer()
    run(hooks.PeriodicWriter([writer], period=4), steps=10)
    assert writer.writes == [3, 7, 9, 10]
    assert writer.closed == 1


def test_what_is_no_writer_is_refused():
    with pytest.raises((TypeError, AssertionError)):
        hooks.PeriodicWriter([print])


def test_checkpoints_are_periodic(tmp_path):
    checkpointer = d2.DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    run(hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=2), steps=7)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
    ]
    assert torch.load(tmp_path / "model_0000005.pth", weights_only=True)["iteration"] == 5


class Saver:
    def __init__(self):
        self.saved = []

    def save(self, name, **extra):
        self.saved.append((name, extra["iteration"]))


@pytest.mark.parametrize(
    ("mode", "values", "saved"),
    [
        # looked at after iterations 1, 3, 5 and, for the last, after training
        ("max", [1.0, 3.0, 2.0, 4.0], [1, 3, 7]),
        ("min", [3.0, 2.0, 2.0, 2.5], [1, 3]),
        ("max", [math.nan, 1.0, 1.0, 0.5], [3]),
        ("max", [-5.0, -4.0, -6.0, 0.0], [1, 3, 7]),
    ],
)
def test_best_is_saved(mode, values, saved):
    saver = Saver()
    hook = hooks.BestCheckpointer(2, saver, "bbox/AP", mode, file_prefix="best")
    metrics = {2 * i + 1: {"bbox/AP": value} for i, value in enumerate(values)}
    run(hook, steps=8, metrics=metrics)
    assert saver.saved == [("best", iteration) for iteration in saved]
    assert (hook.best_iter, hook.best_metric) == (saved[-1], values[(saved[-1] - 1) // 2])


def test_best_without_metric_or_period():
    saver = Saver()
    run(hooks.BestCheckpointer(2, saver, "absent"), steps=4)
    assert saver.saved == []
    run(hooks.BestCheckpointer(0, saver, "m"), steps=4, metrics={1: {"m": 1.0}})
    assert saver.saved == [("model_best", 1)]


def test_best_knows_two_modes():
    with pytest.raises((ValueError, AssertionError), match="median"):
        hooks.BestCheckpointer(1, Saver(), "m", mode="median")


def optimizer_with(*groups):
    """SGD with groups of (number of parameters, rate)."""
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(count)], "lr": rate} for count, rate in groups]
    )


@pytest.mark.parametrize(
    ("groups", "index"),
    [
        ([(1, 0.1), (3, 0.2), (2, 0.3)], 1),
        ([(1, 0.1), (1, 0.2), (1, 0.2)], 1),
        ([(2, 0.1), (2, 0.2)], 0),
    ],
)
def test_whose_rate_is_recorded(groups, index):
    assert hooks.LRScheduler.get_best_param_group_id(optimizer_with(*groups)) == index


@pytest.mark.filterwarnings("ignore:Detected call of")  # there is no training here
def test_rate_follows_a_schedule_of_factors():
    schedule = MultiStepParamScheduler([1.0, 0.1], milestones=[2], num_updates=4)
    hook = hooks.LRScheduler(optimizer_with((1, 0.5)), schedule)
    loop = run(hook, steps=4)
    recorded = [value for value, _ in loop.storage.history("lr").values()]
    assert recorded == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert loop.storage.smoothing_hints()["lr"] is False
    assert hook.state_dict()["last_epoch"] == 4


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_scheduler_of_the_trainer_and_its_state():
    def loop_with(optimizer):
        loop, hook = Loop(), hooks.LRScheduler()
        loop.optimizer = optimizer
        loop.scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        loop.register_hooks([hook])
        return loop

    first = loop_with(optimizer_with((1, 1.0)))
    first.train(0, 3)
    assert [value for value, _ in first.storage.history("lr").values()] == [1.0, 1.0, 0.5]
    state = first.state_dict()
    assert state["hooks"]["LRScheduler"]["last_epoch"] == 3

    second = loop_with(optimizer_with((1, 0.5)))
    second.load_state_dict(state)
    second.train(3, 5)
    assert [value for value, _ in second.storage.history("lr").values()] == [0.5, 0.25]


def test_evaluation_is_periodic_and_final():
    seen = []
    hook = hooks.EvalHook(3, lambda: seen.append(1) or {"bbox": {"AP": 10.0 * len(seen)}, "speed": 2})
    loop = run(hook, steps=9)
    history = loop.storage.history("bbox/AP").values()
    assert history == [(10.0, 2), (20.0, 5), (30.0, 9)]
    assert loop.storage.latest()["speed"] == (2.0, 9)
    assert loop.storage.smoothing_hints()["bbox/AP"] is False


@pytest.mark.parametrize(("period", "after", "count"), [(0, True, 1), (0, False, 0), (2, False, 1), (10, True, 1)])
def test_how_often_it_evaluates(period, after, count):
    seen = []
    run(hooks.EvalHook(period, lambda: seen.append(1), eval_after_train=after), steps=4)
    assert len(seen) == count


def test_no_evaluation_after_a_failure():
    seen = []
    run_and_fail(hooks.EvalHook(0, lambda: seen.append(1)), at=2, steps=5)
    assert seen == []


@pytest.mark.parametrize(
    ("result", "error", "match"),
    [([1], (TypeError, AssertionError), "dict"), ({"bbox": {"AP": "high"}}, ValueError, "bbox/AP")],
)
def test_what_an_evaluation_may_return(result, error, match):
    with pytest.raises(error, match=match):
        run(hooks.EvalHook(0, lambda: result), steps=1)
