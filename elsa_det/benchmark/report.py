"""Tables for the terminal, and the machine in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .cases import BOTH, FORWARD, Case
from .goals import AROUND_ONE, AT_MOST, Goal, Part, Result, Results, Targets, summary, verdicts
from .peers import LABELS
from .records import Record, Records, memory_slope, time_ratios, time_slopes, worst
from .runner import DEFAULT, RETAINED, Settings

_STYLES = {
    "aim": "green",
    "met": "green",
    "must": "yellow",
    "missed": "bold red",
    "not measured": "dim",
    "below the aim": "yellow",
}


def machine(device: str, settings: Settings, compiled: bool | None, load: float) -> dict[str, Any]:
    """What the figures depend on: processor, instruction set, threads, versions, the load before the start."""
    flags, model, family = _cpu()
    described: dict[str, Any] = {
        "cpu": model,
        "cpu_family_model": family,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "bf16_units": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "cpus": os.cpu_count(),
        "threads": settings.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "operator": {True: "compiled", False: "shifted sum, no compiled library", None: "unknown"}[compiled],
        "processes": settings.processes,
        "repeats": settings.repeats,
        "load": round(load, 2),
    }
    if device == "cuda":
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return described


def machine_line(described: dict[str, Any]) -> str:
    """The machine in one line."""
    how = f"median of {described['repeats']}, worst of {described['processes']} processes"
    return " · ".join([*hardware(described), how])


def hardware(described: dict[str, Any]) -> list[str]:
    """What :func:`machine` found of processor, threads, torch and operator."""
    units = f" + {', '.join(described['bf16_units'])}" if described["bf16_units"] else ""
    family = f" ({described['cpu_family_model']})" if described["cpu_family_model"] else ""
    return [
        *([f"{described['gpu']}, CUDA {described['cuda']}"] if "gpu" in described else []),
        f"{described['cpu']}{family}",
        f"ISA {described['isa']}{units}",
        f"{described['threads']} of {described['cpus']} threads",
        f"torch {described['torch']}",
        f"operator: {described['operator']}",
    ]


def busy_warning(load: float) -> str:
    """That others used the CPU before the start, or nothing."""
    cpus = os.cpu_count() or 1
    if load < 0.25 * cpus:
        return ""
    return f"The machine was busy before the start (load {load:.1f} on {cpus} CPUs): the times cannot be relied on."


def _cpu() -> tuple[set[str], str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set(), platform.processor() or platform.machine(), ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return set(fields.get("flags", "").split()), fields.get("model name", platform.machine()), family


# Goals ---------------------------------------------------------------------------------------------------------------


def goals_table(goals: tuple[Goal, ...], results: Results, title: str) -> Table:
    """Must, aim, measured and met of every goal; numbers of several stages stand beside each other."""
    has_default = any(result.default for result in results.values())
    table = Table(title=title, title_justify="left")
    for column in ("#", "case", "against", "must", "aim", "measured"):
        table.add_column(column, overflow="fold")
    if has_default:
        table.add_column("default malloc", overflow="fold")
    table.add_column("met", overflow="fold")
    for goal in goals:
        for i, part in enumerate(goal.parts):
            result = results.get((goal.name, part.label))
            name = f"{goal.case}: {part.label}" if len(goal.parts) > 1 or part.label not in goal.case else goal.case
            row = [goal.name if i == 0 else "", name, goal.against]
            row += [_bounds(part.must, part), _bounds(part.aim, part), _numbers(part, result)]
            if has_default:
                bounds = part.default_must or part.default_aim
                wanted = f"  [dim]aim {_bounds(part.default_aim, part)}[/]" if bounds else ""
                wanted = f"  [dim]must {_bounds(part.default_must, part)}[/]{wanted}" if part.default_must else wanted
                row.append(_numbers(part, result, default=True) + wanted)
            met = summary(part, result)
            row.append(f"[{_STYLES[met]}]{met}[/]")
            table.add_row(*row, end_section=i + 1 == len(goal.parts))
    return table


def _bounds(bounds: Targets, part: Part) -> str:
    if not bounds or all(bound is None for bound in bounds):
        return "–"
    shown = [f"{bound:g}" if bound is not None else "–" for bound in bounds]
    text = shown[0] if len(set(shown)) == 1 else " / ".join(shown)
    return {AT_MOST: "≤ ", AROUND_ONE: "1 ± "}.get(part.sense, "") + text + part.unit


def _numbers(part: Part, result: Result | None, *, default: bool = False) -> str:
    values = [] if result is None else result.default if default else result.values
    if not values or all(value is None for value in values):
        return "–"
    found = verdicts(part, result, default=default)
    shown = [
        "–" if value is None else f"[{_STYLES[v]}]{_number(value)}[/]" if v else _number(value)
        for value, v in zip(values, found)
    ]
    return " / ".join(shown) + part.unit


def _number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


# Measurements --------------------------------------------------------------------------------------------------------


def times_table(records: Records, level: str, modes: tuple[str, ...]) -> Table:
    """A level's peers: milliseconds, the peer's time over ELSA's (the worst process), and the peak memory."""
    cases = [case for case in records.cases() if case.level == level]
    table = Table(title=f"{level}: median ms, (worst ratio to ELSA), peak MB above the inputs", title_justify="left")
    table.add_column("case", no_wrap=True)
    table.add_column("peer")
    for direction in ("fwd", "f+b"):
        for mode in modes:
            table.add_column(f"{direction} ms" + (f", {mode}" if len(modes) > 1 else ""), justify="right")
    for direction in ("fwd", "f+b"):
        table.add_column(f"{direction} MB", justify="right")
    for case in cases:
        peers = list(dict.fromkeys(record.peer for record in records if record.case == case))
        for i, peer in enumerate(peers):
            pair = [records.find(case, peer, direction) for direction in (FORWARD, BOTH)]
            row = [str(case) if i == 0 else "", LABELS.get(peer, peer)]
            row += [_milliseconds(records, record, mode) for record in pair for mode in modes]
            row += ["–" if record.peak is None else f"{record.peak / 1e6:.1f}" for record in pair]
            table.add_row(*row, end_section=i + 1 == len(peers))
    return table


def _milliseconds(records: Records, record: Record, mode: str) -> str:
    median = record.median(mode)
    if median is None:
        return "–"
    ratio = worst(time_ratios(record, records.find(record.case, "elsa", record.direction), mode))
    beside = f" ({_number(ratio)}×)" if ratio is not None and record.peer != "elsa" else ""
    return f"{_number(1e3 * median)}{beside}"


def growth_table(records: Records, level: str, stage: int, mode: str) -> Table | None:
    """Log-log slopes of time and memory on pixels per peer; None where there are fewer than two sizes."""
    chosen = [record for record in records if record.case.level == level and record.case.stage == stage]
    if len({record.case.pixels for record in chosen}) < 2:
        return None
    where = f"{level} stage {stage}" if stage else level
    table = Table(title=f"{where}: growth, log-log slope on pixels (1 is proportional)", title_justify="left")
    for column in ("peer", "fwd time", "f+b time", "fwd memory", "f+b memory"):
        table.add_column(column)
    for peer in dict.fromkeys(record.peer for record in chosen):
        pair = [[r for r in chosen if r.peer == peer and r.direction == d] for d in (FORWARD, BOTH)]
        numbers = [worst(time_slopes(p, mode), largest=True) for p in pair] + [memory_slope(p) for p in pair]
        if any(number is not None for number in numbers):
            table.add_row(LABELS.get(peer, peer), *["–" if n is None else f"{n:.2f}" for n in numbers])
    return table


def missing_lines(records: Records) -> list[str]:
    """What was not measured, and why: one line for every reason."""
    grouped: dict[tuple[str, str], list[tuple[Case, str]]] = {}
    for record in records:
        if record.reason:
            grouped.setdefault((record.peer, record.reason), []).append((record.case, record.direction))
    lines = []
    for (peer, reason), found in grouped.items():
        where = dict.fromkeys(f"{case}" for case, _ in found)
        directions = " and ".join(dict.fromkeys(direction for _, direction in found))
        lines.append(f"{LABELS.get(peer, peer)}, {directions} ({'; '.join(where)}): {reason}")
    return lines


def main_mode(modes: tuple[str, ...]) -> str:
    """The malloc mode that ratios, growth and figures are of."""
    return RETAINED if RETAINED in modes else DEFAULT


def print_records(console: Console, records: Records, modes: tuple[str, ...]) -> None:
    """All tables of what was measured."""
    levels = dict.fromkeys(case.level for case in records.cases())
    for level in levels:
        console.print(times_table(records, level, modes))
        for stage in dict.fromkeys(case.stage for case in records.cases() if case.level == level):
            table = growth_table(records, level, stage, main_mode(modes))
            if table is not None:
                console.print(table)
    for line in missing_lines(records):
        console.print(f"[dim]not measured: {line}[/]", highlight=False)
