"""Scores of semantic segmentation from a confusion matrix, with the definitions of Detectron2's SemSegEvaluator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def segmentation_scores(confusion: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """mIoU, fwIoU, mACC, pACC and, per class, ``IoU-<name>`` and ``ACC-<name>``, all in percent.

    With true positives t, pixels of the class in the ground truth g and in the prediction p:
    IoU = t / (g + p - t), accuracy = t / g. Both are undefined (nan) for a class that does not occur in the ground
    truth, and such classes do not count in the means. fwIoU weighs the IoU with g; pACC is Σt / Σg.

    Args:
        confusion: (N, N) counts of pixels, [ground truth, prediction], without ignored pixels.
        names: Of the N classes.
    """
    true = np.diag(confusion).astype(np.float64)
    truth = confusion.sum(axis=1).astype(np.float64)
    predicted = confusion.sum(axis=0).astype(np.float64)
    occurs = truth > 0
    iou, accuracy = np.full(len(true), np.nan), np.full(len(true), np.nan)
    iou[occurs] = true[occurs] / (truth + predicted - true)[occurs]
    accuracy[occurs] = true[occurs] / truth[occurs]
    nothing = not occurs.any()
    scores = {
        "mIoU": np.nan if nothing else iou[occurs].mean(),
        "fwIoU": np.nan if nothing else float((iou[occurs] * truth[occurs]).sum() / truth.sum()),
        **{f"IoU-{name}": value for name, value in zip(names, iou)},
        "mACC": np.nan if nothing else accuracy[occurs].mean(),
        "pACC": np.nan if nothing else float(true.sum() / truth.sum()),
        **{f"ACC-{name}": value for name, value in zip(names, accuracy)},
    }
    return {key: 100 * float(value) for key, value in scores.items()}


def sparse_confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """The pairs of labels of one image and how often each occurs.

    Args:
        truth: (H, W) integers, class indices and ``ignore_label``.
        predicted: (H, W) integers, class indices.

    Returns:
        (2, M) int64: ground truth · num_classes + prediction, and the number of pixels.
    """
    counted = truth != ignore_label
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.stack(np.unique(pairs, return_counts=True)).astype(np.int64)


def dense_confusion(sparse: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """The (N, N) int64 sum of what :func:`sparse_confusion` gave for several images."""
    confusion = np.zeros(num_classes * num_classes, dtype=np.int64)
    for pairs, counts in sparse:
        confusion[pairs] += counts  # pairs of one image are all different
    return confusion.reshape(num_classes, num_classes)
