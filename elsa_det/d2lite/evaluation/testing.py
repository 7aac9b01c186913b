"""Printing and flattening of evaluation results."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["flatten_results_dict", "print_csv_format"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the metrics of each task as two comma-separated lines, to be pasted into a spreadsheet.

    Args:
        results: Task → metric → score. Metrics with a ``-`` in their name (``AP-<category>``) are left out.
    """
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            logger.info("copypaste: %s=%s", task, scores)
            continue
        main = {name: score for name, score in scores.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{score:.4f}" for score in main.values()))


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{"bbox": {"AP": 30.0}}`` as ``{"bbox/AP": 30.0}``, at any depth."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{rest}": leaf for rest, leaf in flatten_results_dict(value).items()})
        else:
            flat[name] = value
    return flat
