"""Scalars to Weights & Biases, which may fail without harm to the training."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..d2 import EventWriter, get_event_storage
from ..errors import UserError
from .keep_best import TrainingStopped
from .random_state import random_numbers_kept
from .switches import read_options

logger = logging.getLogger(__name__)

#: in the run folder: the identity of the run at W&B, with which a resumed training goes on there
ID_FILE = "wandb_run_id.txt"
_MODES = ("online", "offline")


@dataclass(frozen=True)
class WandbOptions:
    """``train.wandb``; without a name the run is called like its folder."""

    enabled: bool = False
    project: str = "elsa_det"
    name: str | None = None
    mode: str = "online"


def read_wandb(train: Any) -> WandbOptions:
    """``train.wandb``, checked.

    Raises:
        UserError: an option is unknown or unusable, or W&B is asked for and not installed.
    """
    options = read_options(train, "wandb", WandbOptions)
    if not isinstance(options.enabled, bool):
        raise UserError(f"train.wandb.enabled={options.enabled!r} must be true or false")
    if not options.enabled:
        return options
    if options.mode not in _MODES:
        raise UserError(f"train.wandb.mode={options.mode!r} must be {' or '.join(map(repr, _MODES))}")
    for key, value in (("project", options.project), ("name", options.name)):
        if not (isinstance(value, str) and value) and not (key == "name" and value is None):
            raise UserError(f"train.wandb.{key}={value!r} must be a name")
    found = importlib.util.find_spec("wandb") if "wandb" not in sys.modules else sys.modules["wandb"].__spec__
    if "wandb" not in sys.modules and (found is None or found.origin is None):  # a folder that runs left is none
        raise UserError(
            "train.wandb.enabled=True, but Weights & Biases is not installed: pip install wandb, or set "
            "train.wandb.enabled=False"
        )
    return options


class WandbWriter(EventWriter):
    """Sends scalars to Weights & Biases, with the config of the run.

    Whatever fails there is counted and said, once when it happens and with the number at the end.

    Args:
        options: Checked, see :func:`read_wandb`.
        cfg: The whole config, which goes with the run.
        resume: Go on with the run whose identity the run folder holds.
        window_size: Iterations that noisy scalars are smoothed over.
    """

    def __init__(self, options: WandbOptions, cfg: Any, *, resume: bool = False, window_size: int = 20) -> None:
        self.failures = 0
        self._window = window_size
        self._written = -1
        self._run: Any = None
        self._attempt("start", lambda: self._start(options, cfg, resume))

    def _start(self, options: WandbOptions, cfg: Any, resume: bool) -> None:
        import wandb

        folder = Path(cfg.train.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ID_FILE
        known = resume and file.is_file()
        identity = file.read_text().strip() if known else uuid.uuid4().hex[:12]
        if resume and not known:
            logger.warning("%s is not there: a new run begins at Weights & Biases", file)
        with random_numbers_kept():
            run = wandb.init(
                project=options.project,
                name=options.name or folder.resolve().name,
                mode=options.mode,
                dir=str(folder),
                id=identity,
                resume="allow",
                config=plain_config(cfg),
                settings=wandb.Settings(console="off"),  # the log is in log.txt, and a bar is no log
            )
        # Iterations are an axis, not W&B's step: that must not go back, as a resumed training may.
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        file.write_text(f"{identity}\n")
        self._run = run
        logger.info("Weights & Biases: run %s of project %s, %s", identity, options.project, options.mode)

    def write(self) -> None:
        if self._run is None:
            return
        lines: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._written:
                lines.setdefault(iteration, {})[name] = value
        for iteration in sorted(lines):
            self._attempt("log", functools.partial(self._run.log, {**lines[iteration], "iteration": iteration}))
        self._written = max([self._written, *lines])

    def close(self) -> None:
        if self._run is not None:
            error = sys.exc_info()[1]  # hooks end a training that failed, too
            failed = error is not None and not isinstance(error, TrainingStopped)
            self._attempt("finish", lambda: self._run.finish(exit_code=int(failed)))
            self._run = None
        if self.failures:
            logger.warning("Weights & Biases failed %d times; metrics.json has everything", self.failures)

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the training goes on
            self.failures += 1
            if self.failures == 1:
                logger.warning("Weights & Biases failed to %s, training goes on: %r", what, error)


def plain_config(cfg: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and scalars; classes and functions by name, other objects by their type."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"

    try:
        found = plain(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:  # a reference that leads nowhere, in a part that is not used
        found = plain(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(found, dict)
    return found
