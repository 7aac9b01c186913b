"""Measures workloads side by side: they take turns, and the memory of each is read in a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from .measure import peak_bytes, reset_peak
from .runner import ChildFailed, ask_child
from .runs import Exhausted, Run, Sample, set_up
from .workload import DATA, Workload

Progress = Callable[[str], None]

_PERCENTILES = (50, 90, 99)
_MEMORY_STEPS = 4


@dataclass
class Figures:
    """What was measured of a workload; times in seconds, memory in bytes."""

    work: Workload
    inputs: str = ""
    device: str = "cpu"
    notes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    peak: int | None = None  #: most memory of a process that does this alone
    rest: int | None = None  #: memory of that process before its first step

    @property
    def images_per_second(self) -> float:
        """Over all steps; NaN without one."""
        seconds = sum(sample.seconds for sample in self.samples)
        return sum(sample.images for sample in self.samples) / seconds if seconds else float("nan")

    @property
    def batch(self) -> float:
        """Images of a step, the mean."""
        return statistics.mean(sample.images for sample in self.samples) if self.samples else float("nan")

    def latency(self, percent: float) -> float:
        """The percentile of the steps' seconds, interpolated; NaN without a step."""
        if not self.samples:
            return float("nan")
        return float(np.percentile([sample.seconds for sample in self.samples], percent))

    def parts(self) -> dict[str, float]:
        """Mean seconds of each part of a step."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.parts)
        return {name: sum(s.parts.get(name, 0.0) for s in self.samples) / len(self.samples) for name in names}

    @property
    def detections(self) -> float | None:
        """Mean detections of an image; None where the model gives none."""
        counted = [sample for sample in self.samples if sample.detections is not None]
        if not counted:
            return None
        return sum(s.detections or 0 for s in counted) / sum(s.images for s in counted)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "name": self.work.name,
            "workload": self.work.to_dict(),
            "inputs": self.inputs,
            "device": self.device,
            "notes": self.notes,
            "images_per_second": self.images_per_second,
            "latency_seconds": {f"p{percent}": self.latency(percent) for percent in _PERCENTILES},
            "parts_mean_seconds": self.parts(),
            "detections_per_image": self.detections,
            "peak_bytes": self.peak,
            "rest_bytes": self.rest,
            "samples": [asdict(sample) for sample in self.samples],
        }


def measure(
    works: Sequence[Workload],
    figures: list[Figures],
    *,
    warmup: int,
    iterations: int,
    tell: Progress = lambda text: None,
) -> None:
    """Measure workloads, all of one task.

    Args:
        works: what to measure. Data loaders run one after another, since the workers of one would slow another; all
            else takes turns, step by step, so that whatever else the machine does meets all alike.
        figures: filled as the measurement goes on, so that an interruption leaves what is there by then.
        warmup: steps that do not count.
        iterations: steps that count.
        tell: told what is being done.

    Raises:
        FileNotFoundError, UserError: see :func:`elsa_det.benchmark.runs.set_up`.
    """
    groups = [[work] for work in works] if works and works[0].task == DATA else [list(works)]
    for group in groups:
        runs: list[Run] = []
        for work in group:
            tell(f"{work.name}: setting up")
            runs.append(set_up(work))
        found = [Figures(run.work, run.inputs, run.device, run.notes) for run in runs]
        figures += found
        _take_turns(runs, found, warmup, iterations, tell)


def _take_turns(runs: list[Run], found: list[Figures], warmup: int, iterations: int, tell: Progress) -> None:
    pairs = list(zip(runs, found))
    for step in range(warmup + iterations):
        tell(f"step {step + 1} of {warmup + iterations}" + (", warming up" if step < warmup else ""))
        for run, figure in list(pairs):
            try:
                sample = run.step(step)
            except Exhausted:
                run.notes.append(f"the loader ended after {step} batches")
                pairs.remove((run, figure))
                continue
            if step >= warmup:
                figure.samples.append(sample)


def measure_memory(figures: Sequence[Figures], threads: int, tell: Progress = lambda text: None) -> None:
    """Add peak memory to figures, each from a process that does the workload alone.

    Data loaders have none, as their memory is in their workers.
    """
    for figure in figures:
        if figure.work.task == DATA:
            continue
        tell(f"{figure.work.name}: memory")
        try:
            answer = ask_child("memory_worker", figure.work.to_dict() | {"threads": threads}, threads, {})
        except ChildFailed as failure:
            figure.notes.append(f"memory was not measured: {failure}")
            continue
        figure.peak, figure.rest = answer["peak"], answer["rest"]


def memory_of(work: Workload, threads: int) -> dict[str, int]:
    """Bytes that this process uses before and at most during a few steps: resident memory, or on a GPU allocations."""
    torch.set_num_threads(threads)
    run = set_up(work)
    device = "cuda" if run.device.startswith("cuda") else "cpu"
    rest = reset_peak(device)
    for step in range(_MEMORY_STEPS):
        run.step(step)
    return {"rest": rest, "peak": peak_bytes(device)}
