"""Pictures in the folder of a run: predictions at each evaluation, and a summary of how it went."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import nn

from ..d2 import HookBase, comm
from ..errors import UserError
from .ema import ModelEMA
from .figures import chosen_entries, comparison_figure, read_metrics, save_figure, training_figure
from .keep_best import TrainingStopped
from .predictor import Predictor
from .random_state import random_numbers_kept
from .semantic_figures import semantic_comparison_figure
from .switches import Switches, read_options

logger = logging.getLogger(__name__)

SUMMARY = "summary.png"
PREDICTIONS = "predictions"  #: a folder


@dataclass(frozen=True)
class FigureOptions:
    """``train.figures``; ``images`` is how many test images are shown."""

    enabled: bool = True
    images: int = 4


def read_figures(train: Any) -> FigureOptions:
    """``train.figures``, checked.

    Raises:
        UserError: an option is unknown or unusable.
    """
    options = read_options(train, "figures", FigureOptions)
    if not isinstance(options.enabled, bool):
        raise UserError(f"train.figures.enabled={options.enabled!r} must be true or false")
    if not isinstance(options.images, int) or isinstance(options.images, bool) or options.images < 1:
        raise UserError(f"train.figures.images={options.images!r} must be a number of test images, at least 1")
    return options


def predictions_figure(
    predictor: Predictor,
    *,
    count: int = 6,
    threshold: float = 0.5,
    entries: Sequence[dict[str, Any]] | None = None,
) -> Figure:
    """Ground truth beside what a predictor finds in images of its test dataset, boxes and masks or label maps.

    Args:
        predictor: With its dataset.
        count: How many images; fewer if the dataset has fewer.
        threshold: Detections that score less are not drawn.
        entries: The images instead.

    Raises:
        UserError: The test dataset of the config is not there, or is empty.
        FileNotFoundError: A file of it is not there.
    """
    if predictor.dataset_name is None:
        raise UserError("the config's test dataset is not there: nothing to compare the predictions with")
    if predictor.metadata.get("evaluator_type") == "sem_seg":
        return semantic_comparison_figure(predictor.dataset_name, predictor, count=count, entries=entries)
    return comparison_figure(
        predictor.dataset_name, predictor, count=count, threshold=threshold, entries=entries
    )  # fmt: skip


def summary_figure(folder: str | os.PathLike[str], title: str = "", *, storage: Any = None) -> Figure:
    """Losses, learning rate, evaluations and time per iteration of a run.

    Args:
        folder: Of the run, with its ``metrics.json``.
        title: Put above the figure.
        storage: Of a running training: what it knows beyond the file is shown, and what the file has beyond its
            iteration, of another run, is not.

    Raises:
        FileNotFoundError, ValueError: see :func:`~.figures.read_metrics` and :func:`~.figures.training_figure`.
    """
    metrics = read_metrics(folder)
    return training_figure(metrics if storage is None else _until_now(metrics, storage), title)


def run_pictures(cfg: Any, model: nn.Module, ema: ModelEMA | None, switches: Switches) -> RunPictures | None:
    """The hook that draws, on the main process, the weights that are evaluated; None where it is off."""
    options = read_figures(cfg.train)
    if not options.enabled or not comm.is_main_process():
        return None
    averaged = ema is not None and switches.ema.evaluate == "ema"
    return RunPictures(cfg, ema.model if averaged and ema is not None else model, options.images)


class RunPictures(HookBase):
    """Draws ``predictions/iter_XXXXXXX.png`` and ``summary.png`` at each evaluation and at the end.

    The number is the one that the checkpoint of the iteration has. Training goes on as without: random numbers and the
    modes of the model's parts are as before, and what cannot be drawn is a warning. Register it after the hooks that
    evaluate and write.

    Args:
        cfg: The config.
        model: Not wrapped for several processes.
        images: How many test images, spread evenly over the set, the same each time.
    """

    def __init__(self, cfg: Any, model: nn.Module, images: int) -> None:
        self._period = cfg.train.eval_period
        self._folder = Path(cfg.train.output_dir)
        self._cfg, self._model, self._images = cfg, model, images
        self._predictor: Predictor | None = None
        self._entries: list[dict[str, Any]] = []
        self._drawn: int | None = None

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._draw(self.trainer.iter)

    def after_train(self) -> None:
        # On the way out of an exception, too; early stopping comes right after an evaluation.
        finished = self.trainer.iter == self.trainer.max_iter
        last = self.trainer.iter - 1 if finished else self.trainer.iter
        if (finished or isinstance(sys.exc_info()[1], TrainingStopped)) and self._drawn != last:
            self._draw(last)
        else:
            self._attempt(SUMMARY, self._draw_summary)

    def _draw(self, iteration: int) -> None:
        self._drawn = iteration
        name = f"{PREDICTIONS}/iter_{iteration:07d}.png"
        self._attempt(name, lambda: self._draw_predictions(self._folder / name))
        self._attempt(SUMMARY, self._draw_summary)

    def _attempt(self, name: str, draw: Callable[[], None]) -> None:
        try:
            with random_numbers_kept(), _modes_kept(self._model):
                draw()
        except Exception as error:  # a picture is no reason to end a training
            logger.warning("%s could not be drawn, training goes on: %r", self._folder / name, error)

    def _draw_predictions(self, path: Path) -> None:
        if self._predictor is None:
            # It copies the config, in which the optimizer has the model by now.
            kept = [key for key in self._cfg if key != "optimizer"]
            self._predictor = Predictor(OmegaConf.masked_copy(self._cfg, kept), model=self._model)
        if not self._entries and self._predictor.dataset_name is not None:
            self._entries = chosen_entries(self._predictor.dataset_name, self._images)
        save_figure(predictions_figure(self._predictor, entries=self._entries), path)

    def _draw_summary(self) -> None:
        title = str(self._folder)
        save_figure(summary_figure(self._folder, title, storage=self.trainer.storage), self._folder / SUMMARY)


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Each part of the model is in training or evaluation mode afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _until_now(
    metrics: dict[str, tuple[np.ndarray, np.ndarray]], storage: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for name, (iterations, values) in metrics.items():
        if (past := iterations <= storage.iter).any():
            found[name] = (iterations[past], values[past])
    for name, (value, iteration) in storage.latest_with_smoothing_hint().items():
        iterations, values = found.get(name, (np.empty(0, np.int64), np.empty(0)))
        if not len(iterations) or iteration > iterations[-1]:
            found[name] = (np.append(iterations, iteration), np.append(values, value))
    return found
