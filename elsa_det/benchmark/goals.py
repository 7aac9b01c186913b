"""The goals of the operator's performance: what must be reached, what is aimed at, and what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .cases import BOTH, FORWARD, Case
from .records import Records, memory_slope, time_ratios, time_slopes, worst
from .runner import DEFAULT, RETAINED, Runner

AT_LEAST, AT_MOST, AROUND_ONE = "at least", "at most", "around 1"
Targets = tuple[float | None, ...]


@dataclass(frozen=True)
class Part:
    """Bounds on some numbers of a goal, one for each of its stages; None where there is no bound.

    ``AROUND_ONE`` bounds the distance from 1. ``default_must`` and ``default_aim`` hold under default malloc.
    """

    label: str
    must: Targets
    aim: Targets
    sense: str = AT_LEAST
    default_must: Targets = ()
    default_aim: Targets = ()
    unit: str = "×"


@dataclass(frozen=True)
class Goal:
    name: str
    case: str
    against: str
    parts: tuple[Part, ...]


@dataclass
class Result:
    """The numbers of a part, in the order of its bounds: the main ones, and those under default malloc beside them."""

    values: list[float | None] = field(default_factory=list)
    default: list[float | None] = field(default_factory=list)
    reason: str = ""


Results = dict[tuple[str, str], Result]  #: by the goal's name and the part's label

TIME_FORWARD, TIME_BOTH, MEMORY_FORWARD, MEMORY_BOTH = "time forward", "time f+b", "memory forward", "memory f+b"
FWD, F_B = "forward", "f+b"

CPU_GOALS = (
    Goal("C1", "core forward", "unfold", (Part(FWD, (25, 22, 20), (40, 38, 35), default_aim=(90, 85, 80)),)),
    Goal("C2", "core f+b", "unfold", (Part(F_B, (18, 15, 13), (35, 30, 28), default_aim=(60, 55, 45)),)),
    Goal(
        "C3",
        "core",
        "torch.compile of the shifted sum",
        (Part(FWD, (2, 2, 2), (3.5, None, None)), Part(F_B, (3, 3, 3), (6, None, None))),
    ),
    Goal(
        "C4",
        "core, its time",
        "depthwise convolution, same K",
        (Part(FWD, (3,) * 3, (1.7,) * 3, AT_MOST), Part(F_B, (1,) * 3, (0.5,) * 3, AT_MOST)),
    ),
    Goal("C5", "core", "Swin window core, SDPA", (Part(FWD, (1,) * 3, (1.5,) * 3), Part(F_B, (1,) * 3, (1.7,) * 3))),
    Goal(
        "C6", "core, peak memory", "unfold", (Part(FWD, (50,) * 3, (140,) * 3), Part(F_B, (10,) * 3, (30,) * 3))
    ),
    Goal(
        "C7",
        "ELSA-T backbone",
        "same on unfold",
        (
            Part(FWD, (3,), (4,), default_must=(5,), default_aim=(7,)),
            Part(F_B, (4,), (6,), default_must=(6,), default_aim=(8.5,)),
        ),
    ),
    Goal("C8", "ELSA-T backbone", "timm Swin-T features", (Part(FWD, (1.2,), (1.75,)), Part(F_B, (1.0,), (1.3,)))),
    Goal("C9", "ELSA-T bf16 forward", "own fp32", (Part(FWD, (1.3,), (2,)),)),
    Goal("C10", "shifted sum (no library)", "unfold", (Part(FWD, (3,) * 3, (7,) * 3), Part(F_B, (3,) * 3, (7,) * 3))),
    Goal(
        "C11", "core, 1 → 2 threads", "itself", (Part(FWD, (1.6,) * 3, (1.9,) * 3), Part(F_B, (1.6,) * 3, (1.9,) * 3))
    ),
    Goal(
        "C12",
        "core, growth 256² → 2048²",
        "log-log slope on pixels",
        (
            Part(MEMORY_FORWARD, (0.05,) * 3, (0.03,) * 3, AROUND_ONE, unit=""),
            Part(MEMORY_BOTH, (0.05,) * 3, (0.03,) * 3, AROUND_ONE, unit=""),
            Part(TIME_FORWARD, (1.12,) * 3, (1.05,) * 3, AT_MOST, unit=""),
            Part(TIME_BOTH, (1.20,) * 3, (1.10,) * 3, AT_MOST, unit=""),
        ),
    ),
)  # fmt: skip

GPU_GOALS = (
    Goal(
        "G1",
        "core, stage 1",
        "limit 40 / 121 µs of an H200",
        (Part(FWD, (35,), (60,), unit=" %"), Part(F_B, (30,), (50,), unit=" %")),
    ),
    Goal("G2", "core", "unfold", (Part(FWD, (15,) * 3, (30,) * 3), Part(F_B, (10,) * 3, (20,) * 3))),
    Goal(
        "G3",
        "ELSA-T, saved activations",
        "unfold",
        (Part("kept", (39,), (None,)), Part("kept, logits recomputed", (39,), (100,))),
    ),
    Goal("G4", "ELSA-T backbone training step", "Swin-T with SDPA", (Part("speed", (0.7,), (1.0,)),)),
    Goal(
        "G5",
        "core, 2048² batch 2",
        "definition",
        (Part("error over largest value", (0.02,), (0.02,), AT_MOST, unit=""),),
    ),
)  # fmt: skip

#: seconds that the arithmetic of the core takes on an H200 at stage 1, 800x1333, batch 2, bfloat16
GPU_LIMITS = {FORWARD: 40e-6, BOTH: 121e-6}
CORE_PEERS = ("elsa", "unfold", "shifted", "compiled", "compiled_nhwc", "depthwise", "window", "elsa_one_thread")
BACKBONE_PEERS = ("elsa", "unfold", "plain", "timm", "elsa_bf16")
GROWTH_SIDES = (256, 512, 1024, 2048)
_STAGES = (1, 2, 3)
_DIRECTIONS = ((FWD, FORWARD), (F_B, BOTH))


def verdict(value: float | None, must: float | None, aim: float | None, sense: str = AT_LEAST) -> str:
    """What a number reaches: "aim" or "must", or "met" where there is no aim; "missed", "below the aim" where there is
    an aim only, "not measured" without a number, "" without any bound.
    """
    if must is None and aim is None:
        return ""
    if value is None or math.isnan(value):
        return "not measured"
    if aim is not None and _reached(value, aim, sense):
        return "aim"
    if must is None:
        return "below the aim"
    if not _reached(value, must, sense):
        return "missed"
    return "met" if aim is None else "must"


def _reached(value: float, bound: float, sense: str) -> bool:
    if sense == AT_LEAST:
        return value >= bound
    if sense == AT_MOST:
        return value <= bound
    return abs(value - 1) <= bound + 1e-9  # 1.05 is 1 ± 0.05


def verdicts(part: Part, result: Result | None, *, default: bool = False) -> list[str]:
    """The verdict on every number of a part; ``default`` judges the numbers under default malloc."""
    must, aim = (part.default_must, part.default_aim) if default else (part.must, part.aim)
    count = len(part.must)
    values = ([] if result is None else result.default if default else result.values) or [None] * count
    padded_must, padded_aim = must or (None,) * count, aim or (None,) * count
    return [verdict(v, m, a, part.sense) for v, m, a in zip(values, padded_must, padded_aim)]


def summary(part: Part, result: Result | None) -> str:
    """The worst verdict on a part, those under default malloc included: what a table says about it."""
    order = ["missed", "not measured", "must", "aim", "met"]
    found = verdicts(part, result)
    if result is not None and any(value is not None for value in result.default):
        found += verdicts(part, result, default=True)
    # Where there is an aim only, falling short of it is no failure.
    found = ["must" if verdict == "below the aim" else verdict for verdict in found if verdict]
    return min(found, key=order.index)


# Measuring -----------------------------------------------------------------------------------------------------------


def measure_cpu_goals(runner: Runner, *, side: int = 512, growth_sides: tuple[int, ...] = GROWTH_SIDES) -> Records:
    """Measure all that C1 to C12 need."""
    for case in (_core(side, stage) for stage in _STAGES):
        runner.measure(case, CORE_PEERS if runner.settings.threads > 1 else CORE_PEERS[:-1])
    runner.measure(Case("backbone", side, side), BACKBONE_PEERS)
    for stage in _STAGES:
        for growth_side in growth_sides:
            if growth_side != side:
                runner.measure(_core(growth_side, stage), ("elsa",))
    return runner.records


def cpu_results(records: Records, *, side: int = 512, growth_sides: tuple[int, ...] = GROWTH_SIDES) -> Results:
    """C1 to C12 from what was measured; the worst of the processes each."""
    results: Results = {}

    def compare(goal: str, level: str, slow: str, fast: str, *, inverse: bool = False, other: str = "") -> None:
        """``slow``, or the faster of it and ``other``, over ``fast``; with ``inverse``, ``fast`` over ``slow``."""
        cases = [_core(side, stage) for stage in _STAGES] if level == "core" else [Case(level, side, side)]
        for label, direction in _DIRECTIONS:
            names = [name for name in (slow, other) if name]
            rows = [[records.find(case, name, direction) for name in (fast, *names)] for case in cases]

            def values(mode: str) -> list[float | None]:
                if inverse:
                    return [worst(time_ratios(row[0], row[1], mode), largest=True) for row in rows]  # noqa: B023
                return [worst([r for s in row[1:] for r in time_ratios(s, row[0], mode)]) for row in rows]  # noqa: B023

            reason = next((r.reason for row in rows for r in row if r.reason), "")
            results[goal, label] = Result(values(RETAINED), values(DEFAULT), reason)

    compare("C1", "core", "unfold", "elsa")
    compare("C2", "core", "unfold", "elsa")
    compare("C3", "core", "compiled", "elsa", other="compiled_nhwc")
    compare("C4", "core", "depthwise", "elsa", inverse=True)
    compare("C5", "core", "window", "elsa")
    compare("C7", "backbone", "unfold", "elsa")
    compare("C8", "backbone", "timm", "elsa")
    compare("C9", "backbone", "elsa", "elsa_bf16")
    compare("C10", "core", "unfold", "shifted")
    compare("C11", "core", "elsa_one_thread", "elsa")
    for label, direction in _DIRECTIONS:
        pairs = [tuple(records.find(_core(side, s), p, direction) for p in ("unfold", "elsa")) for s in _STAGES]
        results["C6", label] = Result(
            [u.peak / e.peak if u.peak and e.peak else None for u, e in pairs],
            reason=next((r.reason for pair in pairs for r in pair if r.reason), ""),
        )
    for (_, direction), memory, time in zip(_DIRECTIONS, (MEMORY_FORWARD, MEMORY_BOTH), (TIME_FORWARD, TIME_BOTH)):
        rows = [[records.find(_core(s, stage), "elsa", direction) for s in growth_sides] for stage in _STAGES]
        reason = next((r.reason for row in rows for r in row if r.reason), "")
        results["C12", memory] = Result([memory_slope(row) for row in rows], reason=reason)
        slopes = [[worst(time_slopes(row, mode), largest=True) for row in rows] for mode in (RETAINED, DEFAULT)]
        results["C12", time] = Result(slopes[0], slopes[1], reason)
    return results


def measure_gpu_goals(
    runner: Runner, *, height: int = 800, width: int = 1333, large: int = 2048, batch: int = 2, device: str = "cuda"
) -> tuple[Records, Results]:
    """Measure G1 to G5 and compute them."""
    size: dict[str, Any] = dict(height=height, width=width, batch=batch, dtype="bfloat16", device=device)
    cores = [Case("core", stage=stage, **size) for stage in _STAGES]
    backbone, training = Case("backbone", **size), Case("training", **size)
    records, results = runner.records, Results()
    for case in cores:
        runner.measure(case, ("elsa", "unfold", "depthwise", "window"))
    runner.measure(training, ("elsa", "swin"))
    for label, direction in _DIRECTIONS:
        elsa, unfold = ([records.find(c, p, direction) for c in cores] for p in ("elsa", "unfold"))
        times = elsa[0].seconds.get(DEFAULT, [])
        share = worst([100 * GPU_LIMITS[direction] / seconds for seconds in times])
        results["G1", label] = Result([share], reason=elsa[0].reason)
        results["G2", label] = Result(
            [worst(time_ratios(u, e, DEFAULT)) for u, e in zip(unfold, elsa)],
            reason=next((r.reason for r in elsa + unfold if r.reason), ""),
        )
    saved = runner.single("saved", backbone, ["elsa", "unfold", "elsa_recompute"])
    for label, name in (("kept", "elsa"), ("kept, logits recomputed", "elsa_recompute")):
        results["G3", label] = Result([saved_ratio(saved.values, name)], reason="; ".join(saved.reasons.values()))
    swin, own = (records.find(training, name, BOTH) for name in ("swin", "elsa"))
    results["G4", "speed"] = Result([worst(time_ratios(swin, own, DEFAULT))], reason=swin.reason or own.reason)
    large_case = Case("core", large, large, stage=1, batch=2, dtype="bfloat16", device=device)
    errors = runner.single("values", large_case, ["elsa"])
    results["G5", "error over largest value"] = Result(
        [errors.values.get("elsa", {}).get(BOTH)], reason=errors.reasons.get("elsa", "")
    )
    return records, results


def saved_ratio(kept: dict[str, dict[str, float]], name: str) -> float | None:
    """What unfold makes a forward keep, over what ``name`` makes it keep; None where one is missing."""
    if not {"unfold", name} <= set(kept):
        return None
    return kept["unfold"][BOTH] / kept[name][BOTH]


def results_to_list(goals: tuple[Goal, ...], results: Results) -> list[dict[str, Any]]:
    """Goals, numbers and verdicts as plain values for JSON."""
    rows: list[dict[str, Any]] = []
    for goal in goals:
        for part in goal.parts:
            result = results.get((goal.name, part.label), Result(reason="not measured"))
            rows.append(
                dict(
                    goal=goal.name,
                    case=goal.case,
                    against=goal.against,
                    part=part.label,
                    sense=part.sense,
                    must=part.must,
                    aim=part.aim,
                    measured=result.values,
                    verdicts=verdicts(part, result),
                    default_must=part.default_must,
                    default_aim=part.default_aim,
                    default_measured=result.default,
                    default_verdicts=verdicts(part, result, default=True),
                    met=summary(part, result),
                    reason=result.reason,
                )
            )
    return rows


def unmet(goals: tuple[Goal, ...], results: Results) -> list[str]:
    """The parts whose must is missed or not measured."""
    return [
        f"{goal.name} {part.label}"
        for goal in goals
        for part in goal.parts
        if summary(part, results.get((goal.name, part.label))) in ("missed", "not measured")
    ]


def _core(side: int, stage: int) -> Case:
    return Case("core", side, side, stage=stage)
