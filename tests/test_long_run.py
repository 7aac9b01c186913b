"""The long run of tests/soak/long_run.py, in short: what it measures, and what it makes of it."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import mmap
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "soak"))

import long_run
from usage import LIMITS, Usage, growth, judge, usage

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="for Linux")


@pytest.fixture(autouse=True)
def _quick_collections():
    """What was imported need not be gone through whenever garbage is collected."""
    gc.freeze()
    yield
    gc.unfreeze()


def samples(count=60, **slopes):
    """Made up: each quantity grows by so much an iteration, with evaluations that take more for a moment."""
    start = {"rss": 9e8, "held": 8e8, "workers_rss": 5e8, "fds": 70, "shm": 1e6}
    spikes = {"rss": 6e7, "held": 5e7, "workers_rss": 0, "fds": 30, "shm": 2e6}
    made = []
    for i in range(10, 10 * count + 1, 10):
        at = {name: int(v + i * slopes.get(name, 0) + spikes[name] * (i % 100 == 0)) for name, v in start.items()}
        made.append(Usage(iteration=i, seconds=i / 10, workers=2, **at))
    return made


def test_what_stays_passes():
    slopes, faults = judge(samples(), 100)
    assert faults == []
    assert slopes == dict.fromkeys(LIMITS, 0.0)


@pytest.mark.parametrize(("name", "slope"), [("held", 15_000), ("workers_rss", 12_000), ("fds", 0.01), ("shm", 2_000)])
def test_what_grows_fails(name, slope):
    slopes, faults = judge(samples(**{name: slope}), 100)
    assert slopes[name] == pytest.approx(slope, rel=0.1)
    assert faults == [f"{name} grows by {slopes[name]:.4g} an iteration, more than {LIMITS[name]:g}"]
    assert judge(samples(**{name: 0.4 * LIMITS[name]}), 100)[1] == []


def test_the_warm_up_does_not_count():
    begin = [
        Usage(i, 0.0, rss=0, held=i * 10**6, workers_rss=0, workers=0, fds=i, shm=i * 10**5) for i in range(1, 100)
    ]
    assert judge(begin + samples(), 100)[1] == []
    assert growth(begin, "held") == 1e6
    with pytest.raises(ValueError, match="9 samples after 500 iterations are too few"):
        judge(samples(59), 500)


def grown(leak, count=20):
    """The growth in real samples, while ``leak()`` gives something to keep in each iteration."""
    kept, taken = [], []
    for i in range(count):
        kept.append(leak())
        taken.append(usage(i))
    return {name: growth(taken, name) for name in LIMITS}


def test_memory_is_measured():
    def leak():
        pages = mmap.mmap(-1, 2**20)  # not of memory that was freed before
        pages.write(os.urandom(2**20))
        return pages

    slopes = grown(leak)
    assert slopes["held"] == pytest.approx(2**20, rel=0.05)
    assert slopes["fds"] == slopes["shm"] == slopes["workers_rss"] == 0


def test_what_is_freed_does_not_count():
    def cycle():
        pages = [os.urandom(1000) for _ in range(2000)]
        pages.append(pages)  # left to Python's collector
        return None

    assert abs(grown(cycle)["held"]) < 100_000


def test_open_files_are_measured():
    with contextlib.ExitStack() as stack:
        slopes = grown(lambda: stack.enter_context(open(os.devnull)))
    assert slopes["fds"] == 1
    assert slopes["shm"] == 0


def test_shared_memory_is_measured():
    slopes = grown(lambda: torch.zeros(2**18, dtype=torch.uint8).share_memory_())
    assert slopes["shm"] == pytest.approx(2**18, rel=0.05)


def wait(ready, leave):
    kept = bytearray(os.urandom(2**24))
    ready.set()
    leave.wait(60)
    del kept


def test_workers_are_measured():
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    before = usage(0)
    worker = context.Process(target=wait, args=(ready, leave))
    worker.start()
    try:
        assert ready.wait(60)
        during = usage(1)
    finally:
        leave.set()
        worker.join()
    assert during.workers == before.workers + 1
    assert during.workers_rss - before.workers_rss > 2**24
    assert during.fds >= before.fds + 3
    assert usage(2).workers == before.workers


def test_a_short_run(tmp_path, monkeypatch):
    """Its memory still grows, as that of any run that begins; files and shared memory do not."""
    monkeypatch.setitem(LIMITS, "held", 3e6)
    monkeypatch.setitem(LIMITS, "workers_rss", 3e6)
    quick = functools.partial(long_run.run, overrides=["train.figures.enabled=False", "train.ema.evaluate=ema"])
    monkeypatch.setattr(long_run, "run", quick)
    gc.collect()  # loaders of other tests, with their workers
    others = usage(0).workers
    assert long_run.main(["--iterations", "60", "--every", "2", "--period", "60", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "long_run.json").read_text())
    taken = found["samples"]
    assert [sample["iteration"] for sample in taken] == list(range(2, 61, 2))
    assert {sample["workers"] for sample in taken} == {others + 2}
    assert all(sample["rss"] >= sample["held"] > 10**8 < sample["workers_rss"] for sample in taken)
    assert all(sample["fds"] > 10 and sample["shm"] > 2 * 64 * 64 * 3 for sample in taken)
    assert found["growth"]["fds"] == 0
    assert found["warm_up"] == 15
    assert (tmp_path / "long_run.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(LIMITS, "fds", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(long_run, "run", lambda *_: None)
        patch.setattr(long_run, "watched", lambda every: contextlib.nullcontext(samples(fds=1)))
        assert long_run.main(["--iterations", "60", "--output", str(tmp_path)]) == 1
