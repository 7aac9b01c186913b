"""Tables of throughput, with ratios to the first workload."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .throughput import Figures
from .workload import DATA, INFERENCE, TRAIN

_TITLES = {INFERENCE: "Inference", TRAIN: "A step of training", DATA: "Data loading alone"}


def throughput_table(figures: Sequence[Figures]) -> Table:
    """Images a second, percentiles of the latency of a batch, peak memory; beside them ratios to the first row."""
    task = figures[0].work.task
    table = Table(title=f"{_TITLES[task]}{_ratio_hint(figures)}", title_justify="left")
    table.add_column("config", overflow="fold")
    table.add_column("batch", justify="right")
    table.add_column("images/s", justify="right")
    for percent in (50, 90, 99):
        table.add_column(f"p{percent} ms", justify="right")
    if task != DATA:
        table.add_column("peak MB", justify="right")
        table.add_column("at rest", justify="right")
    if task == INFERENCE:
        table.add_column("found/image", justify="right")
    table.add_column("steps", justify="right")
    first = figures[0]
    for figure in figures:
        row = [figure.work.name, f"{figure.batch:g}"]
        row.append(_with_ratio(figure.images_per_second, first.images_per_second, figure is first))
        row += [
            _with_ratio(1e3 * figure.latency(p), 1e3 * first.latency(p), figure is first or p != 50)
            for p in (50, 90, 99)
        ]
        if task != DATA:
            row += [_megabytes(figure.peak, first.peak, figure is first), _megabytes(figure.rest, None, True)]
        if task == INFERENCE:
            row.append("–" if figure.detections is None else f"{figure.detections:.1f}")
        table.add_row(*row, str(len(figure.samples)))
    return table


def parts_table(figures: Sequence[Figures]) -> Table | None:
    """Mean milliseconds of each part of a step and its share of the step; None where there are no parts."""
    found = [figure.parts() for figure in figures]
    names = _in_order(found)
    if not names:
        return None
    table = Table(title=f"Parts: mean ms, share of the step{_ratio_hint(figures)}", title_justify="left")
    table.add_column("part", no_wrap=True)
    for figure in figures:
        table.add_column(figure.work.name, justify="right", overflow="fold")
    for name in names:
        depth = name.count("/")
        row = [f"{'  ' * depth}{name.rsplit('/', 1)[-1]}"]
        for figure, parts in zip(figures, found):
            row.append(_part(parts.get(name), found[0].get(name), _mean_seconds(figure), figure is figures[0]))
        table.add_row(*row)
    totals = [_mean_seconds(figure) for figure in figures]
    row = [_with_ratio(1e3 * total, 1e3 * totals[0], i == 0) for i, total in enumerate(totals)]
    table.add_section()
    table.add_row("step", *row)
    return table


def _in_order(found: Sequence[dict[str, float]]) -> list[str]:
    """Parts of all workloads, those within another right behind it."""
    names = list(dict.fromkeys(name for parts in found for name in parts))
    tops = list(dict.fromkeys(name.split("/")[0] for name in names))
    return [name for top in tops for name in names if name.split("/")[0] == top]


def _part(seconds: float | None, first: float | None, step: float, alone: bool) -> str:
    if seconds is None:
        return "–"
    ratio = "" if alone or not first else f" [dim]({seconds / first:.2f}×)[/]"
    return f"{number(1e3 * seconds)} {100 * seconds / step:3.0f}%{ratio}"


def _mean_seconds(figure: Figures) -> float:
    if not figure.samples:
        return math.nan
    return sum(sample.seconds for sample in figure.samples) / len(figure.samples)


def print_figures(console: Console, figures: Sequence[Figures], machine: str) -> None:
    """Tables, what the images are, and the machine."""
    if not figures:
        return
    console.print(throughput_table(figures))
    parts = parts_table(figures)
    if parts is not None:
        console.print(parts)
    inputs = list(dict.fromkeys(figure.inputs for figure in figures))
    for text in inputs:
        names = "" if len(inputs) == 1 else f" ({', '.join(f.work.name for f in figures if f.inputs == text)})"
        style = "bold yellow" if any(f.work.random_size and f.inputs == text for f in figures) else "default"
        console.print(f"images{names}: {text}", style=style, highlight=False, markup=False)
    for figure in figures:
        console.print(f"{figure.work.name}: {'; '.join(figure.notes)}", highlight=False, markup=False)
    console.print(machine, highlight=False, markup=False)


def _ratio_hint(figures: Sequence[Figures]) -> str:
    return "" if len(figures) < 2 else f", (ratio to {figures[0].work.name})"


def _with_ratio(value: float, first: float, alone: bool) -> str:
    return number(value) if alone or not first else f"{number(value)} [dim]({value / first:.2f}×)[/]"


def _megabytes(count: int | None, first: int | None, alone: bool) -> str:
    if count is None:
        return "–"
    ratio = "" if alone or not first else f" [dim]({count / first:.2f}×)[/]"
    return f"{count / 1e6:.0f}{ratio}"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
