"""Figures of a run: predictions beside the ground truth, and the curves of losses and AP."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..d2 import DatasetCatalog, MetadataCatalog
from ..errors import UserError
from .contact_sheet import evenly
from .drawing import PALETTE, confident, draw_ground_truth, draw_predictions
from .predictor import read_image

logger = logging.getLogger(__name__)

_COLORS = [tuple(value / 255 for value in color) for color in PALETTE]
_INK, _SOFT, _GRID = "#222222", "#666666", "#e2e2e2"
_DPI = 120


def comparison_figure(
    dataset_name: str,
    predict: Callable[[np.ndarray], dict[str, Any]],
    *,
    count: int = 6,
    threshold: float = 0.5,
    entries: Sequence[dict[str, Any]] | None = None,
) -> Figure:
    """Ground truth beside predictions, for images spread evenly over a registered dataset.

    Args:
        dataset_name: Its name in the catalogue.
        predict: From an (H, W, 3) uint8 BGR image to the model's answer, such as a ``Predictor``.
        count: How many images; fewer if the dataset has fewer.
        threshold: Predictions that score less are not drawn.
        entries: The images instead, such as :func:`chosen_entries` gives them.

    Raises:
        UserError: ``count`` is not positive, or the dataset is empty.
        FileNotFoundError: An image of the dataset is not there.
    """
    chosen = chosen_entries(dataset_name, count) if entries is None else entries
    count, metadata = len(chosen), MetadataCatalog.get(dataset_name)

    pairs_per_row = 1 if count == 1 else 2
    rows = math.ceil(count / pairs_per_row)
    figure = new_figure(7.2 * pairs_per_row, 3.75 * rows + 0.45)
    figure.suptitle(f"Ground truth, and predictions that score {threshold:.0%} or more", fontsize=14, color=_INK)
    # Columns: two panels, a gap, two panels.
    widths = [1.0, 1.0, 0.06, 1.0, 1.0][: 2 if pairs_per_row == 1 else 5]
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    for position, entry in enumerate(chosen):
        row, column = divmod(position, pairs_per_row)
        image = read_image(entry["file_name"])
        outputs = predict(image)
        found = len(confident(outputs, threshold))
        objects = len(entry.get("annotations", []))
        name = Path(entry["file_name"]).stem
        panels = (
            (draw_ground_truth(image, entry, metadata), f"{name} · {objects} annotated"),
            (draw_predictions(image, outputs, metadata, threshold=threshold), f"{found} predicted"),
        )
        for offset, (panel, caption) in enumerate(panels):
            axes = figure.add_subplot(grid[row, 3 * column + offset])
            axes.imshow(panel[:, :, ::-1], interpolation="antialiased")
            axes.set_title(caption, fontsize=11, color=_INK, pad=4)
            axes.set_axis_off()
    return figure


def chosen_entries(dataset_name: str, count: int) -> list[dict[str, Any]]:
    """``count`` entries spread evenly over a registered dataset; fewer if it has fewer.

    Raises:
        UserError: ``count`` is not positive, or the dataset is empty.
    """
    if count < 1:
        raise UserError(f"count is a number of images and must be at least 1, got {count}")
    entries = DatasetCatalog.get(dataset_name)
    if not entries:
        raise UserError(f"dataset {dataset_name} has no images")
    return [entries[i] for i in evenly(count, len(entries))]


def read_metrics(path: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the scalars that Detectron2's ``JSONWriter`` left, one JSON object a line.

    Args:
        path: A ``metrics.json``, or the run's folder that has one.

    Returns:
        Per scalar its iterations, ascending, and its values. Where a resumed run wrote an iteration again, the later
        value counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no metrics in it, or a line is not what JSONWriter writes.
    """
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no '{path}'; training writes it into its output folder.")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            scalars = json.loads(line)
            iteration = int(scalars.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # the run is being written or was cut off
                logger.warning("%s: the last line is incomplete and left out.", path)
                continue
            raise ValueError(f"{path}, line {number} is no line of metrics ({error!r}): {line[:80]}") from error
        for key, value in scalars.items():
            if isinstance(value, (int, float)):
                series.setdefault(key, {})[iteration] = float(value)
    if not series:
        raise ValueError(f"'{path}' has no metrics in it: has training reached its first log period?")
    return {
        key: (np.array(sorted(values), dtype=np.int64), np.array([values[i] for i in sorted(values)]))
        for key, values in series.items()
    }


def training_figure(metrics: dict[str, tuple[np.ndarray, np.ndarray]], title: str = "") -> Figure:
    """The losses, the learning rate, the evaluations and the time per iteration of a run.

    Args:
        metrics: As :func:`read_metrics` gives them.
        title: Put above the figure.

    Raises:
        ValueError: The metrics have neither losses nor evaluations.
    """
    losses = sorted(key for key in metrics if re.match(r"loss(_|$)", key.rpartition("/")[2]) and "/" not in key)
    losses = (["total_loss"] if "total_loss" in metrics else []) + losses
    scores = [key for key in metrics if _SCORE.search(key)]
    if not losses and not scores:
        raise ValueError(f"There are neither losses nor evaluations among the metrics: {sorted(metrics)}.")

    figure = new_figure(12.0, 5.2)
    if title:
        figure.suptitle(title, fontsize=13, color=_INK)
    grid = figure.add_gridspec(2, 2, height_ratios=[4, 1])
    loss_axes = figure.add_subplot(grid[0, 0])
    rate_axes = figure.add_subplot(grid[1, 0], sharex=loss_axes)
    score_axes = figure.add_subplot(grid[0, 1])
    time_axes = figure.add_subplot(grid[1, 1], sharex=score_axes)
    _draw_losses(loss_axes, metrics, losses)
    loss_axes.tick_params(labelbottom=False)
    _draw_rate(rate_axes, metrics)
    _draw_scores(score_axes, metrics, scores)
    score_axes.tick_params(labelbottom=False)
    _draw_time(time_axes, metrics)
    last = max(int(iterations[-1]) for iterations, _ in metrics.values())
    for axes in (loss_axes, score_axes):
        axes.set_xlim(0, max(1, last) * 1.02)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the format follows the ending (``.png``, ``.pdf``, ``.svg``), folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")


# AP of boxes or masks, or mIoU; with several test sets, "<dataset>/" stands before it.
# What the name of a task ends in says how it was evaluated: "bbox_EMA", "sem_seg_slide". Of those the main score.
_SCORE = re.compile(r"(?:^|/)(?:(?:bbox|segm)/(?:AP|AP50|AP75)|sem_seg/mIoU|(?:bbox|segm)_\w+/AP|sem_seg_\w+/mIoU)$")
_TASK = re.compile("bbox|segm|sem_seg")
_TASK_NAMES = {"bbox": "box", "segm": "mask", "sem_seg": "segmentation"}
_TASK_COLORS = {"bbox": _COLORS[0], "segm": _COLORS[5], "sem_seg": _COLORS[2]}
_SCORE_STYLES = {"AP": ("-", 2.4), "mIoU": ("-", 2.4), "AP50": ("--", 1.3), "AP75": (":", 1.6)}
_MARKERS = "os^Dv"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which no window belongs to."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    axes.set_xlabel(xlabel, color=_INK)
    axes.set_ylabel(ylabel, color=_INK)
    if title:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelcolor=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_SOFT)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_SOFT)


def _draw_losses(axes: Axes, metrics: dict[str, tuple[np.ndarray, np.ndarray]], losses: Sequence[str]) -> None:
    _style(axes, "", "loss (logarithmic)", "Training losses")
    drawn = False
    for position, key in enumerate(losses):
        iterations, values = metrics[key]
        if key == "total_loss":
            look: dict[str, Any] = {"color": _INK, "linewidth": 2.4}
        else:
            part = position - ("total_loss" in losses)
            style = ("-", "--", ":")[part // len(_COLORS) % 3]
            look = {"color": _COLORS[part % len(_COLORS)], "linewidth": 1.5, "linestyle": style}
        shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        if np.isfinite(shown).any():
            axes.plot(iterations, shown, label=key, marker="o" if len(values) == 1 else None, **look)
            drawn = True
    if not drawn:
        _note(axes, "no losses")
        return
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
    axes.yaxis.set_minor_formatter(plain if high / low < 12 else NullFormatter())
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper right", labelcolor=_INK)


def _draw_rate(axes: Axes, metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    _style(axes, "iteration", "learning rate")
    if "lr" not in metrics:
        _note(axes, "not recorded")
        return
    iterations, rates = metrics["lr"]
    axes.fill_between(iterations, rates, color=_COLORS[0], alpha=0.15, linewidth=0)
    axes.plot(iterations, rates, color=_COLORS[0], linewidth=1.5, marker="o" if len(rates) == 1 else None)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _draw_time(axes: Axes, metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    _style(axes, "iteration", "s / iteration")
    for key, label, color in (("time", "all", _COLORS[0]), ("data_time", "of them data", _COLORS[1])):
        if key in metrics:
            iterations, seconds = metrics[key]
            marker = "o" if len(seconds) == 1 else None
            axes.plot(iterations, seconds, color=color, linewidth=1.5, label=label, marker=marker)
    if not axes.lines:
        _note(axes, "not recorded")
        return
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8.5, ncols=2, labelcolor=_INK, loc="best")


def _kind(key: str) -> tuple[str, str]:
    """The test set that a score's name begins with, and what the name of its task ends in: ``("mine", "_EMA")``."""
    *dataset, task, _ = key.split("/")
    return "/".join(dataset), _TASK.sub("", task, count=1)


def _draw_scores(axes: Axes, metrics: dict[str, tuple[np.ndarray, np.ndarray]], scores: Sequence[str]) -> None:
    is_miou = bool(scores) and all(key.endswith("mIoU") for key in scores)
    _style(axes, "", "mIoU (%)" if is_miou else "AP (%)", "Evaluation")
    kinds = sorted({_kind(key) for key in scores})
    several = len({dataset for dataset, _ in kinds}) > 1
    highest = 0.0
    order = {name: rank for rank, name in enumerate(("bbox", "segm", "sem_seg", "AP", "mIoU", "AP50", "AP75"))}

    def rank(key: str) -> tuple[tuple[str, str], int, int]:
        task, score = key.split("/")[-2:]
        return _kind(key), order[_TASK.match(task)[0]], order[score]  # type: ignore[index]

    for key in sorted(scores, key=rank):
        iterations, values = metrics[key]
        known = np.isfinite(values) & (values >= 0)  # COCO says -1 or NaN where there is nothing to measure
        if not known.any():
            logger.warning("%s has no finite value and is left out of the figure.", key)
            continue
        dataset, way = _kind(key)
        task, score = key.split("/")[-2:]
        task = task.removesuffix(way)
        style, width = _SCORE_STYLES[score]
        if way:
            style, width = "-.", 1.6
        name = f"{dataset} {_TASK_NAMES[task]}" if several else _TASK_NAMES[task]
        axes.plot(
            iterations[known],
            values[known],
            style,
            linewidth=width,
            color=_TASK_COLORS[task],
            marker=_MARKERS[kinds.index((dataset, way)) % len(_MARKERS)],
            markersize=4 if width > 2 else 3,
            label=f"{name}{way.replace('_', ' ')} {score}  {values[known][-1]:.1f}",
        )
        highest = max(highest, float(values[known].max()))
    if not axes.lines:
        _note(axes, "no evaluation yet")
        axes.set_ylim(0, 100)
        return
    axes.set_ylim(0, min(100.0, highest * 1.12 + 1))
    axes.legend(frameon=False, fontsize=9.5, labelcolor=_INK, title="last value", alignment="left", loc="best")
