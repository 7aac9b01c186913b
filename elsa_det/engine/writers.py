"""All that write down how a training goes."""

from __future__ import annotations

from typing import Any

from ..d2 import EventWriter, default_writers
from .wandb_writer import WandbWriter, read_wandb


def run_writers(cfg: Any, *, resume: bool = False) -> list[EventWriter]:
    """Detectron2's three (the log, ``metrics.json``, TensorBoard), and Weights & Biases where it is asked for.

    Args:
        cfg: The config.
        resume: Go on with the same run at Weights & Biases.

    Raises:
        UserError: see :func:`~.wandb_writer.read_wandb`.
    """
    options = read_wandb(cfg.train)
    writers = list(default_writers(cfg.train.output_dir, cfg.train.max_iter))
    return [*writers, WandbWriter(options, cfg, resume=resume)] if options.enabled else writers
