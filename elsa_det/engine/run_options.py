"""What a config says of the run itself, checked before the work."""

from __future__ import annotations

from typing import Any

from .progress import progress_mode
from .run_pictures import read_figures
from .wandb_writer import read_wandb


def check_run_options(train: Any, *, training: bool = True) -> None:
    """Raise if ``train.progress``, ``train.figures`` or ``train.wandb`` cannot be; the latter two are of trainings.

    Raises:
        UserError: a value is not understood, or Weights & Biases is asked for and not installed.
    """
    progress_mode(train)
    if training:
        read_figures(train)
        read_wandb(train)
