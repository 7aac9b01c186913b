"""Pictures of semantic segmentation: overlays with a legend, errors, comparisons, the confusion matrix."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from ..d2 import MetadataCatalog
from ..data.semantic import IGNORE_LABEL, label_encoding, read_labels
from ..data.semantic.colors import class_colors
from ..evaluation.semantic_evaluator import predicted_labels
from .figures import chosen_entries, new_figure, save_figure
from .predictor import as_bgr, read_image

logger = logging.getLogger(__name__)

_OPACITY = 0.55
_LEGIBLE = 480  # pixels of the shorter side at which the writing can be read
_LEAST_SHARE = 0.001  # of the image, below which a class is not in the legend by name
_MOST_NAMED = 24
_INK, _PAPER, _GREY = (34, 34, 34), (255, 255, 255), (150, 150, 150)
RIGHT, WRONG, IGNORED = (158, 115, 0), (0, 94, 213), (200, 200, 200)
"""Colours of an error map, BGR, told apart with any kind of colour vision."""


def draw_segmentation(
    image: np.ndarray,
    labels: np.ndarray,
    metadata: Any,
    *,
    ignore_label: int = IGNORE_LABEL,
    legend: bool = True,
    scale: int | None = None,
) -> np.ndarray:
    """Tint an image with the colours of its labels.

    Args:
        image: (H, W, 3) uint8, BGR.
        labels: (H, W) class indices; ``ignore_label`` and what is beyond the classes is left as it is.
        metadata: Of the dataset, for ``stuff_classes`` and ``stuff_colors``.
        ignore_label: Not drawn.
        legend: Add a strip on the right with the classes, the largest first.
        scale: Enlargement; by default small images are enlarged until the writing can be read.

    Returns:
        (scale·H, scale·W + strip, 3) uint8, BGR.

    Raises:
        ValueError: Image and labels differ in size.
    """
    height, width = as_bgr(image).shape[:2]
    if labels.shape != (height, width):
        raise ValueError(f"the image is {(height, width)}, its labels are {labels.shape} (height, width)")
    if scale is None:
        scale = max(1, round(_LEGIBLE / min(height, width))) if legend else 1
    size = (width * scale, height * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    shown = labels.astype(np.int32)
    if scale > 1:
        shown = shown.repeat(scale, axis=0).repeat(scale, axis=1)
    present, pixels = np.unique(labels, return_counts=True)
    kept = present != ignore_label
    classes, pixels = present[kept].tolist(), pixels[kept].tolist()
    colors = class_palette(metadata, max(classes, default=-1) + 1)
    for index in classes:
        inside = shown == index
        tint = np.array(colors[index][::-1], dtype=np.float32) * _OPACITY
        canvas[inside] = np.rint(canvas[inside] * (1 - _OPACITY) + tint).astype(np.uint8)
    canvas = _outlined(canvas, shown)
    if not legend:
        return canvas
    order = sorted(zip(pixels, classes), reverse=True)
    names = metadata.get("stuff_classes") or []
    entries = [
        (colors[index], names[index] if index < len(names) else f"class {index}", count / labels.size)
        for count, index in order
    ]
    return _with_legend(canvas, entries, unlabelled=float((labels == ignore_label).mean()))


def is_segmentation(outputs: dict[str, Any]) -> bool:
    """Whether a model's answer for an image labels every pixel."""
    return "instances" not in outputs and ("sem_seg_labels" in outputs or "sem_seg" in outputs)


def draw_segmentor_answer(image: np.ndarray, outputs: dict[str, Any], metadata: Any) -> np.ndarray:
    """:func:`draw_segmentation` of a model's answer, "sem_seg_labels" (H, W) or "sem_seg" (C, H, W)."""
    labels = outputs["sem_seg_labels"] if "sem_seg_labels" in outputs else outputs["sem_seg"].argmax(dim=0)
    return draw_segmentation(image, labels.cpu().numpy(), metadata, ignore_label=-1)


def draw_errors(
    truth: np.ndarray, predicted: np.ndarray, image: np.ndarray, *, ignore_label: int = IGNORE_LABEL
) -> np.ndarray:
    """Where a prediction is right, wrong and not counted, over the darkened grey image.

    Args:
        truth, predicted: (H, W) class indices.
        image: (H, W, 3) uint8, BGR.
        ignore_label: In ``truth``, pixels that are not counted.

    Returns:
        (H, W, 3) uint8, BGR, in :data:`RIGHT`, :data:`WRONG` and :data:`IGNORED`.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.float32)
    colors = np.empty((*truth.shape, 3), dtype=np.float32)
    colors[...] = RIGHT
    colors[truth != predicted] = WRONG
    colors[truth == ignore_label] = IGNORED
    strength = np.where((truth != predicted) & (truth != ignore_label), 0.8, 0.35)[:, :, None]
    return (grey * (1 - strength) + colors * strength).astype(np.uint8)


def semantic_comparison_figure(
    dataset_name: str,
    predict: Callable[[np.ndarray], dict[str, Any]],
    *,
    count: int = 4,
    entries: Sequence[dict[str, Any]] | None = None,
) -> Figure:
    """Image, ground truth, prediction and errors in a row, for images spread evenly over a registered dataset.

    Args:
        dataset_name: Its name in the catalogue.
        predict: From an (H, W, 3) uint8 BGR image to the model's answer, such as a ``Predictor``.
        count: How many images; fewer if the dataset has fewer.
        entries: The images instead, such as :func:`~.figures.chosen_entries` gives them.

    Raises:
        UserError: ``count`` is not positive, the dataset is none for segmentation, or a file of it cannot be used.
        FileNotFoundError: A file of the dataset is not there.
    """
    encoding, metadata = label_encoding(dataset_name), MetadataCatalog.get(dataset_name)
    chosen = chosen_entries(dataset_name, count) if entries is None else entries
    count = len(chosen)
    figure = new_figure(15.5, 3.3 * count + 1.0)
    grid = figure.add_gridspec(count, 4)
    shown: dict[int, int] = {}
    for row, entry in enumerate(chosen):
        image = read_image(entry["file_name"])
        predicted = predicted_labels(predict(image), encoding.num_classes)
        truth = read_labels(entry["sem_seg_file_name"], encoding, size=image.shape[:2], image=entry["file_name"])
        counted = truth != encoding.ignore_label
        right = float((truth == predicted)[counted].mean()) if counted.any() else math.nan
        for labels in (truth[counted], predicted):
            for index, pixels in zip(*np.unique(labels, return_counts=True)):
                shown[int(index)] = shown.get(int(index), 0) + int(pixels)
        options: dict[str, Any] = {"legend": False, "ignore_label": encoding.ignore_label}
        panels = (
            (image, Path(entry["file_name"]).stem),
            (draw_segmentation(image, truth, metadata, **options), "ground truth"),
            (draw_segmentation(image, predicted, metadata, **options), "prediction"),
            (
                draw_errors(truth, predicted, image, ignore_label=encoding.ignore_label),
                f"errors (orange); {right:.0%} of pixels right",
            ),
        )
        for column, (panel, caption) in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(panel[:, :, ::-1], interpolation="antialiased")
            axes.set_title(caption, fontsize=10, color="#222222", pad=4)
            axes.set_axis_off()
    _figure_legend(figure, shown, metadata)
    return figure


def confusion_figure(confusion: np.ndarray, names: Sequence[str], title: str = "", *, most: int = 30) -> Figure:
    """The confusion matrix, each row in shares of the pixels of a class in the ground truth.

    Args:
        confusion: (N, N) counts, [ground truth, prediction].
        names: Of the N classes.
        title: Put above the figure.
        most: Classes shown at most: those of the most pixels, others together as "others".

    Raises:
        ValueError: The matrix and the names do not fit each other.
    """
    if confusion.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix of {len(names)} classes cannot be {confusion.shape}")
    occurring = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    order = occurring[np.argsort(-confusion.sum(axis=1)[occurring], kind="stable")]
    kept, rest = order[:most], order[most:]
    matrix = confusion[np.ix_(kept, kept)].astype(np.float64)
    labels = [names[index] for index in kept]
    if len(rest):
        matrix = np.block(
            [
                [matrix, confusion[np.ix_(kept, rest)].sum(axis=1, keepdims=True)],
                [confusion[np.ix_(rest, kept)].sum(axis=0, keepdims=True), confusion[np.ix_(rest, rest)].sum()],
            ]
        )
        labels.append(f"{len(rest)} others")
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)

    side = max(4.5, 0.42 * len(labels) + 2.2)
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=9)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlabel("prediction")
    axes.set_ylabel("ground truth")
    axes.set_title(title or "Share of the pixels of each class in the ground truth", fontsize=11)
    for row, column in np.argwhere(share >= 0.01).tolist():
        value = share[row, column]
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5,
            color="white" if value > 0.55 else "#222222",
        )  # fmt: skip
    for row in np.flatnonzero(total[:, 0] == 0).tolist():
        axes.text(0, row, "not in the ground truth", va="center", fontsize=7.5, color="#888888")
    figure.colorbar(drawn, ax=axes, shrink=0.7, format=lambda value, _: f"{100 * value:.0f}%")
    return figure


def save_confusion_figure(evaluator: Any) -> None:
    """Draw the confusion matrix of an evaluator that has one into its output folder; others are left alone."""
    confusion, folder = getattr(evaluator, "confusion", None), getattr(evaluator, "output_dir", None)
    if confusion is None or not folder:
        return
    target = Path(folder) / "sem_seg_confusion.png"
    save_figure(confusion_figure(confusion, evaluator.class_names), target)
    logger.info("Confusion matrix drawn in %s", target)


def class_palette(metadata: Any, count: int) -> list[tuple[int, int, int]]:
    """At least ``count`` colours, RGB: those of the dataset, made-up ones where it has none or too few."""
    colors = [tuple(color) for color in metadata.get("stuff_colors") or []]
    return colors if len(colors) >= count else class_colors(count)


def _outlined(canvas: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw thin bright lines between regions."""
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    canvas[border] = (0.4 * canvas[border] + 0.6 * 255).astype(np.uint8)
    return canvas


def _with_legend(
    canvas: np.ndarray, entries: Sequence[tuple[tuple[int, int, int], str, float]], unlabelled: float
) -> np.ndarray:
    """Add a strip on the right: a patch, the name and the share of the image for each class."""
    height = canvas.shape[0]
    named = [entry for entry in entries if entry[2] >= _LEAST_SHARE][:_MOST_NAMED]
    lines: list[tuple[tuple[int, int, int] | None, str]] = [
        (color, f"{name}  {100 * share:.1f}%") for color, name, share in named
    ]
    if len(entries) > len(named):
        rest = sum(share for _, _, share in entries) - sum(share for _, _, share in named)
        lines.append((None, f"{len(entries) - len(named)} more  {100 * rest:.1f}%"))
    if unlabelled > 0:
        lines.append((None, f"not labelled  {100 * unlabelled:.1f}%"))
    line = int(min(max(16.0, height / 22), height / max(1, len(lines) + 1)))
    font, weight = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(line / 24))
    size = line / 38
    wide = max((cv2.getTextSize(text, font, size, weight)[0][0] for _, text in lines), default=0)
    strip = np.full((height, round(2.2 * line) + wide, 3), _PAPER, dtype=np.uint8)
    for number, (color, text) in enumerate(lines):
        top = round((number + 0.5) * line)
        patch = (round(0.5 * line), top + round(0.15 * line)), (round(1.3 * line), top + round(0.85 * line))
        if color is not None:
            cv2.rectangle(strip, *patch, [int(value) for value in color[::-1]], -1)
        cv2.rectangle(strip, *patch, _GREY, 1)
        cv2.putText(strip, text, (round(1.7 * line), top + round(0.72 * line)), font, size, _INK, weight, cv2.LINE_AA)
    return np.concatenate([canvas, strip], axis=1)


def _figure_legend(figure: Figure, shown: dict[int, int], metadata: Any) -> None:
    from matplotlib.patches import Patch

    names = metadata.get("stuff_classes") or []
    order = sorted(shown, key=lambda index: -shown[index])[:_MOST_NAMED]
    colors = class_palette(metadata, max(order, default=-1) + 1)
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colors[i]), label=names[i] if i < len(names) else f"class {i}")
        for i in order
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
