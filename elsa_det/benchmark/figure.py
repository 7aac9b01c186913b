"""Time and memory against pixels, on logarithmic axes."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .cases import BOTH, FORWARD, Case
from .peers import LABELS
from .records import Record, Records

# Okabe and Ito's colours, with a marker each: told apart with any kind of colour vision, and in print.
_LOOKS: dict[str, dict[str, Any]] = {
    "elsa": dict(color="#0072b2", marker="o", linewidth=2.8, markersize=7, zorder=5),
    "unfold": dict(color="#d55e00", marker="s"),
    "shifted": dict(color="#009e73", marker="^"),
    "compiled": dict(color="#cc79a7", marker="v"),
    "compiled_nhwc": dict(color="#cc79a7", marker="<", linestyle=(0, (2, 1.5))),
    "depthwise": dict(color="#222222", marker="P", linestyle=(0, (4, 2))),
    "window": dict(color="#e69f00", marker="D"),
    "natten": dict(color="#56b4e9", marker="X"),
    "swin": dict(color="#cc79a7", marker="h"),
    "timm": dict(color="#56b4e9", marker="X"),
    "elsa_bf16": dict(color="#0072b2", marker="*", linestyle=(0, (2, 1.5))),
    "elsa_recompute": dict(color="#0072b2", marker="p", linestyle=(0, (4, 1, 1, 1))),
    "elsa_one_thread": dict(color="#0072b2", marker=".", linestyle=":"),
}
_MOST_COLUMNS = 4
_INK, _SOFT, _GRID = "#222222", "#666666", "#e2e2e2"
_TITLES = {FORWARD: "forward", BOTH: "forward + backward"}
_UNITS_OF_TIME = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_UNITS_OF_MEMORY = ((1e3, "KB"), (1e6, "MB"), (1e9, "GB"))


def growth_figure(records: Records, mode: str, *, title: str = "", note: str = "") -> Figure:
    """Time above, peak memory below, against the image's pixels; a column per level, stage and direction.

    What was measured at one size only is left out where something grows.

    Args:
        records: what was measured.
        mode: the malloc mode whose times are drawn.
        title: above the figure.
        note: below it: the machine, for instance.

    Raises:
        ValueError: nothing was measured.
    """
    drawn = [record for record in records if record.seconds.get(mode) or record.peak]
    columns = list(dict.fromkeys(map(_column, drawn)))
    if not columns:
        raise ValueError("nothing was measured, so there is nothing to draw")
    growing = [c for c in columns if len({r.case.pixels for r in drawn if _column(r) == c}) > 1]
    columns = growing or columns
    if len(columns) > _MOST_COLUMNS:
        columns = [c for c in columns if c[1] <= 1][:_MOST_COLUMNS] or columns[:_MOST_COLUMNS]
        note = "\n".join([*filter(None, [note]), "further stages were measured and are left out here"])
    drawn = [record for record in drawn if _column(record) in columns]
    if growing:  # of a peer that ran at one size only there is no line
        sizes: dict[tuple[str, str], set[int]] = {}
        for r in drawn:
            sizes.setdefault((r.case.level, r.peer), set()).add(r.case.pixels)
        drawn = [r for r in drawn if len(sizes[r.case.level, r.peer]) > 1]
    has_memory = any(record.peak for record in drawn)
    rows = 2 if has_memory else 1
    figure = Figure(figsize=(5.2 * max(2, len(columns)), 3.9 * rows + 1.3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(columns), squeeze=False, sharey="row", sharex=True)
    for j, (level, stage, direction) in enumerate(columns):
        chosen = [r for r in drawn if _column(r) == (level, stage, direction)]
        where = f"{level}, stage {stage}" if stage else level
        grid[0, j].set_title(f"{where}: {_TITLES[direction]}", loc="left", fontsize=12, fontweight="bold", color=_INK)
        _draw(grid[0, j], chosen, "median time" if j == 0 else "", _UNITS_OF_TIME, lambda r: r.median(mode))
        if has_memory:
            label = "peak memory above the inputs" if j == 0 else ""
            _draw(grid[1, j], chosen, label, _UNITS_OF_MEMORY, lambda r: r.peak)
        grid[-1, j].set_xlabel("image, pixels", color=_INK)
        _label_sizes(grid[-1, j], [record.case for record in drawn])
    _legend(figure, grid[0], title)
    if note:
        figure.supxlabel(note, fontsize=8.5, color=_SOFT)
    return figure


def _column(record: Record) -> tuple[str, int, str]:
    return record.case.level, record.case.stage, record.direction


def _draw(axes: Axes, records: list[Record], label: str, units: Any, value: Any) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for peer in dict.fromkeys(record.peer for record in records):
        points = sorted((r.case.pixels, value(r)) for r in records if r.peer == peer and value(r))
        if points:
            look = {"linewidth": 1.6, "markersize": 5.5, **_LOOKS.get(peer, {})}
            axes.plot(*zip(*points), label=LABELS.get(peer, peer), **look)
    axes.set_ylabel(label, color=_INK, fontsize=11)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: _with_unit(number, units)))
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelcolor=_INK, labelleft=bool(label))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_SOFT)


def _label_sizes(axes: Axes, cases: list[Case]) -> None:
    """Ticks at the sizes that were measured, in place of powers of ten."""
    names = {case.pixels: str(case).split(" batch ")[0].split()[-1] for case in cases}
    ticks = sorted(names)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda pixels, _: names.get(round(pixels), "")))
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 2, ticks[0] * 2)


def _legend(figure: Figure, row: Any, title: str) -> None:
    handles: dict[str, Any] = {}
    for axes in row:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=min(4, len(handles)), frameon=False,
        fontsize=10.5, labelcolor=_INK, title=title or None, title_fontsize=14,
    )  # fmt: skip


def _with_unit(number: float, units: Any) -> str:
    size, name = next(((s, n) for s, n in reversed(units) if number >= s * 0.999), units[0])
    return f"{number / size:g} {name}"
