"""Starts the child processes that measure, and keeps them within the machine's memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .cases import Answer, Case, Job
from .peers import directions_of
from .records import Record, Records

RETAINED, DEFAULT = "retained", "default"
#: glibc's malloc: "retained" keeps freed memory, so that no time goes into page faults; "exact" gives it back at once,
#: so that the peak is what is alive.
MALLOC = {
    RETAINED: {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "20000000000",
        "MALLOC_TOP_PAD_": "268435456",
    },
    DEFAULT: {},
    "exact": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"},
}

_PROBE_SIDE = 256  # pixels of the image whose memory is measured before a larger one is tried
_SAFE_PIXELS = 300_000  # images up to this are tried without a probe
_USABLE = 0.8  # share of the available memory that a peer may need
_SLACK = 1.2  # on the extrapolated need


@dataclass
class Settings:
    """How to measure; ``modes`` are names in ``MALLOC`` and do nothing on a GPU."""

    threads: int = 2
    processes: int = 3
    repeats: int = 9
    modes: tuple[str, ...] = (RETAINED, DEFAULT)
    memory: bool = True

    def modes_on(self, device: str) -> tuple[str, ...]:
        return (DEFAULT,) if device == "cuda" else self.modes


@dataclass
class Runner:
    """Measures cases in child processes.

    Args:
        settings: how.
        progress: told what is being measured, before every child process.
        start: runs a job under a malloc mode; by default in a child process.
        available: the bytes that may be had on a device.
    """

    settings: Settings
    progress: Callable[[str], None] = lambda text: None
    start: Callable[[Job, str], Answer] = lambda job, mode: run_in_child(job, mode)
    available: Callable[[str], float] = lambda device: available_bytes(device)
    records: Records = field(default_factory=Records)  #: all that was measured
    compiled: bool | None = None  #: whether the compiled operator was there; known after the first job
    _probed: dict[tuple[Case, str], dict[str, float]] = field(default_factory=dict)

    def measure(self, case: Case, peers: tuple[str, ...] | list[str]) -> list[Record]:
        """Time and peak memory of peers in a case, added to ``records``; what cannot be measured has its reason."""
        records = {(p, d): Record(case, p, d) for p in peers for d in directions_of(p, case.level)}
        self.records.add(records.values())  # now: an interruption leaves what is there by then
        plan = self._within_memory(case, {p: directions_of(p, case.level) for p in peers}, records)
        if self.settings.memory and plan:
            answer = self._run(Job("memory", case, plan, self.settings.threads), "exact", f"{case}: memory")
            _note(answer, records)
            for name, values in answer.values.items():
                for direction, value in values.items():
                    records[name, direction].peak = value
            plan = {name: list(answer.values[name]) for name in plan if name in answer.values} or plan
        modes = self.settings.modes_on(case.device) if plan else ()
        for mode in modes:
            for process in range(self.settings.processes):
                job = Job("time", case, plan, self.settings.threads, self.settings.repeats)
                label = f"{case}: time, {mode} malloc" if case.device == "cpu" else f"{case}: time"
                answer = self._run(job, mode, f"{label}, process {process + 1} of {self.settings.processes}")
                _note(answer, records)
                for name, values in answer.values.items():
                    for direction, value in values.items():
                        records[name, direction].seconds.setdefault(mode, []).append(value)
        return list(records.values())

    def single(self, kind: str, case: Case, peers: list[str]) -> Answer:
        """A job of kind "saved" or "values"."""
        plan = {name: directions_of(name, case.level) for name in peers}
        return self._run(Job(kind, case, plan, self.settings.threads), DEFAULT, f"{case}: {kind}")

    def _run(self, job: Job, mode: str, text: str) -> Answer:
        self.progress(text)
        answer = self.start(job, mode)
        if answer.values:
            self.compiled = answer.compiled
        return answer

    def _within_memory(
        self, case: Case, plan: dict[str, list[str]], records: Mapping[tuple[str, str], Record]
    ) -> dict[str, list[str]]:
        """The part of a plan that fits into memory, judged by what a small image needs; the rest gets a reason."""
        if case.pixels <= _SAFE_PIXELS:
            return plan
        probe = replace(case, height=_PROBE_SIDE, width=_PROBE_SIDE, batch=1)
        missing = [name for name in plan if (probe, name) not in self._probed]
        if missing:
            job = Job("memory", probe, {name: plan[name] for name in missing}, self.settings.threads)
            answer = self._run(job, "exact", f"{probe}: memory, to foresee that of {case}")
            for name in missing:
                inputs = answer.inputs.get(name, 0.0)
                self._probed[probe, name] = {d: inputs + v for d, v in answer.values.get(name, {}).items()}
        available, growth = self.available(case.device), case.pixels / probe.pixels * _SLACK
        fitting: dict[str, list[str]] = {}
        for name, directions in plan.items():
            for direction in directions:
                need = self._probed[probe, name].get(direction, 0.0) * growth
                if need <= _USABLE * available:
                    fitting.setdefault(name, []).append(direction)
                else:
                    records[
                        name, direction
                    ].reason = f"skipped: needs about {gigabytes(need)}, {gigabytes(available)} are available"
        return fitting


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


class ChildFailed(Exception):
    """A child process ended without an answer; the message says why."""


def run_in_child(job: Job, mode: str) -> Answer:
    """Do a job in a fresh process under a malloc mode; where that dies, all its peers have the reason."""
    root = Path(__file__).parents[2]
    try:
        return Answer.from_dict(ask_child("worker", job.to_dict(), job.threads, MALLOC[mode], cwd=root))
    except ChildFailed as failure:
        return Answer(reasons=dict.fromkeys(job.plan, str(failure)))


def ask_child(
    worker: str, job: dict[str, Any], threads: int, malloc: Mapping[str, str], cwd: str | Path | None = None
) -> dict[str, Any]:
    """Run a module of this package in a fresh process.

    Args:
        worker: the module; it reads the job as JSON from standard input and writes the answer as the last line.
        job: what it gets.
        threads: of OpenMP.
        malloc: settings of malloc in its environment; it has no others.
        cwd: the folder that it runs in.

    Raises:
        ChildFailed: it ended with an error or by a signal.
    """
    root = Path(__file__).parents[2]  # of this package, which need not be the installed one
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), **malloc}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"{__package__}.{worker}"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
    )
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise ChildFailed(
            f"the process was ended by {name}" + (", probably out of memory" if name == "SIGKILL" else "")
        )
    lines = [line for line in child.stderr.splitlines() if line.strip()]
    raise ChildFailed(lines[-1][:200] if lines else f"the process ended with {child.returncode}")


def available_bytes(device: str) -> float:
    """Memory that may still be had: on the GPU its free memory, else the system's, within the cgroup's limit."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return math.inf
    available = next(float(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return available
    return available if limit == "max" else min(available, float(limit) - used)


def _note(answer: Answer, records: Mapping[tuple[str, str], Record]) -> None:
    for (name, _), record in records.items():
        if name in answer.reasons and not record.reason:
            record.reason = answer.reasons[name]
