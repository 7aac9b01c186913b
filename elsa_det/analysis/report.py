"""An analysis as a table for the terminal and as plain data."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .analyze import Analysis
from .parts import Figures


def analysis_table(analysis: Analysis, depth: int, title: str = "") -> Table:
    """Parameters, multiply-adds and kept memory of the parts down to ``depth`` levels below the model."""
    table = Table(title=title, title_justify="left")
    table.add_column("part", no_wrap=True)
    for column in ("parameters", "multiply-adds", "%"):
        table.add_column(column, justify="right")
    if analysis.kept_bytes is not None:
        table.add_column("kept for backward", justify="right")
    whole = max(analysis.multiply_adds, 1)
    for name, figures in analysis.accounting.tree(depth):
        level = name.count(".") + 1 if name else 0
        count = figures.multiply_adds.total()
        row = ["  " * level + (name.rpartition(".")[2] or "model"), f"{figures.parameters:,}"]
        row += [f"{count / 1e9:,.2f} G", f"{100 * count / whole:.1f}"]
        if figures.kept_bytes is not None:
            row.append(f"{figures.kept_bytes / 2**20:,.1f} MiB")
        table.add_row(*row, style="bold" if not name else None)
    return table


def analysis_lines(analysis: Analysis) -> list[str]:
    """What the figures are for, and the multiply-adds by kind of operation."""
    height, width = analysis.image_size
    total = analysis.accounting.total()
    kinds = [f"{kind} {count / 1e9:.2f} G" for kind, count in total.multiply_adds.most_common() if count]
    where = f"one image of {height}x{width} (padded)"
    if analysis.regions is not None:
        where += f", {analysis.regions.boxes} proposals, {analysis.regions.masks} mask regions a mask head"
    lines = [f"Multiply-adds: inference of {where}: {', '.join(kinds)}."]
    lines.append("Not counted: biases, norms, activations, softmax, pooling, resizing, ROIAlign, NMS.")
    if analysis.kept_bytes is not None:
        sampled = analysis.training_regions
        regions = "" if sampled is None else f", {sampled.boxes} sampled proposals, {sampled.masks} of them with masks"
        lines.append(f"Kept for backward: training on one such image{regions}, without mixed precision and losses.")
    if total.trainable != total.parameters:
        lines.append(f"Frozen: {total.parameters - total.trainable:,} parameters.")
    return lines


def analysis_data(analysis: Analysis) -> dict[str, Any]:
    """Everything, for JSON: ``parts`` holds every module with all its submodules."""

    def row(figures: Figures) -> dict[str, Any]:
        return {
            "parameters": figures.parameters,
            "trainable_parameters": figures.trainable,
            "multiply_adds": figures.multiply_adds.total(),
            "multiply_adds_by_kind": {kind: count for kind, count in figures.multiply_adds.items() if count},
            "kept_bytes": figures.kept_bytes,
        }

    def regions(found: Any) -> dict[str, int] | None:
        return None if found is None else {"boxes": found.boxes, "masks": found.masks}

    return {
        "image_size": list(analysis.image_size),
        "regions": regions(analysis.regions),
        "training_regions": regions(analysis.training_regions),
        "total": row(analysis.accounting.total()),
        "parts": {name: row(figures) for name, figures in analysis.accounting.tree(depth=1000) if name},
    }
