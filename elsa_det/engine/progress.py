"""How far a training or an evaluation is: on a terminal a bar below the log, elsewhere the log's lines alone."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from ..d2 import HookBase, comm
from ..errors import UserError
from ..evaluation.inference import Callbacks, watch_inference
from .process_memory import resident_bytes

logger = logging.getLogger(__name__)

AUTO, BAR, PLAIN = "auto", "bar", "plain"
_REDRAWN = 0.1  # seconds from one picture of the bar to the next
_WINDOW = 20  # iterations that losses and times are smoothed over, as in the log
_ETA_WINDOW = 1000


def progress_mode(train: Any) -> str:
    """``train.progress``, checked.

    Raises:
        UserError: it is none of "auto", "bar" and "plain".
    """
    mode = train.get("progress", AUTO)
    if mode not in (AUTO, BAR, PLAIN):
        raise UserError(f"train.progress={mode!r} must be 'auto' (a bar on a terminal), 'bar' or 'plain'")
    return mode


@contextlib.contextmanager
def show_progress(train: Any, trainer: Any = None) -> Iterator[ProgressDisplay | None]:
    """Within it a bar shows how far the trainer and any evaluation are, on the main process and on a terminal.

    Log lines, and what is printed, appear above the bar; lines that say what it shows go to the log file only.

    Args:
        train: Of the config; ``train.progress`` decides: "bar" needs stdout to be a terminal, "auto" stderr as well.
        trainer: Whose iterations are shown; it gets a hook.

    Yields:
        The display, or None where there is no bar.
    """
    mode = progress_mode(train)
    if mode == PLAIN or not comm.is_main_process():
        yield None
        return
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_interactive or (mode == AUTO and not sys.stderr.isatty()):
        if mode == BAR:
            logger.warning("train.progress=bar needs a terminal, and there is none: progress is in the log's lines")
        yield None
        return
    display = ProgressDisplay(console)
    if trainer is not None:
        trainer.register_hooks([_ShowIterations(display)])
    with display, watch_inference(display.inference_callbacks):
        yield display


@dataclass(frozen=True)
class Facts:
    """What the bar says of a training.

    Args:
        losses: Names and values, smoothed, the total first.
        lr: Learning rate.
        seconds: Of an iteration, ``data_seconds`` of them waiting for data; means of the last iterations.
        eta: Seconds to the end.
    """

    losses: list[tuple[str, float]]
    lr: float | None
    seconds: float | None
    data_seconds: float | None
    eta: float | None


def training_facts(storage: Any, max_iter: int) -> Facts:
    """Read what the bar says from an event storage; what is not recorded is None."""
    known = storage.histories()
    smoothed = storage.latest_with_smoothing_hint(_WINDOW)
    names = sorted((name for name in smoothed if "loss" in name), key=lambda name: name != "total_loss")

    def mean(name: str) -> float | None:
        return float(known[name].avg(storage.count_samples(name, _WINDOW))) if name in known else None

    left = max_iter - storage.iter - 1
    return Facts(
        losses=[(name, smoothed[name][0]) for name in names],
        lr=float(known["lr"].latest()) if "lr" in known else None,
        seconds=mean("time"),
        data_seconds=mean("data_time"),
        eta=float(known["time"].median(_ETA_WINDOW)) * max(0, left) if "time" in known else None,
    )


def describe_memory() -> str:
    """CUDA's largest allocation so far where there is CUDA, otherwise what the process takes now."""
    if torch.cuda.is_available():
        return f"max GPU memory {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB"
    return f"memory {resident_bytes() / 2**20:,.0f} MiB"


class ProgressDisplay:
    """The bar. Used as a context, in which the terminal's log handlers, ``sys.stdout`` and ``sys.stderr`` go above it.

    It is drawn from where progress is made, never by a thread: loaders fork processes, and a lock that a thread holds
    at that moment would stay locked in them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self._below: list[Text] = []
        self._drawn = -_REDRAWN
        self._training: Any = None
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._render,
        )
        self._around = contextlib.ExitStack()

    def __enter__(self) -> ProgressDisplay:
        self._around.enter_context(_terminal_above(self._console))
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._around.close()

    def training(self, iteration: int, max_iter: int) -> None:
        """A training begins at ``iteration``, 0 for the first."""
        self._training = self._bars.add_task("training", total=max_iter, completed=iteration, eta="-:--:--")
        self._draw()

    def iterated(self, storage: Any, max_iter: int, *, last: bool = False) -> None:
        """An iteration is done; its numbers are in the storage."""
        if self._training is None or not (last or self._due()):
            return
        facts = training_facts(storage, max_iter)
        done = min(storage.iter + 1, max_iter)
        self._bars.update(self._training, completed=done, eta=_clock(facts.eta))
        rest = [describe_memory()]
        for name, value, form in (
            ("lr", facts.lr, "{:.4g}"),
            ("time", facts.seconds, "{:.3f} s"),
            ("data_time", facts.data_seconds, "{:.3f} s"),
        ):
            if value is not None:
                rest.insert(-1, f"{name} {form.format(value)}")
        losses = [f"{name} {value:.4g}" for name, value in facts.losses]
        self._below = [Text("  ".join(line), style="dim" if line is rest else "") for line in (losses, rest) if line]
        self._draw()

    def inference_callbacks(self, batches: int) -> Callbacks:
        """Shows an evaluation of so many batches: for :func:`elsa_det.evaluation.inference.watch_inference`."""
        task = began = None
        done = 0

        def start() -> None:
            nonlocal task, began
            began = time.monotonic()
            task = self._bars.add_task("evaluation", total=batches, eta="-:--:--")
            self._draw()

        def step() -> None:
            nonlocal done
            done += 1
            if task is not None and began is not None and self._due():
                eta = (time.monotonic() - began) / done * (batches - done)
                self._bars.update(task, completed=done, eta=_clock(eta))
                self._draw()

        def end() -> None:
            if task is not None:
                self._bars.remove_task(task)
                self._draw()

        return {"on_start": start, "after_inference": step, "on_end": end}

    def _due(self) -> bool:
        return time.monotonic() - self._drawn >= _REDRAWN

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.refresh()

    def _render(self) -> RenderableType:
        return Group(self._bars.get_renderable(), *self._below)


class _ShowIterations(HookBase):
    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display

    def before_train(self) -> None:
        self._display.training(self.trainer.start_iter, self.trainer.max_iter)

    def after_step(self) -> None:
        done = self.trainer.iter + 1 == self.trainer.max_iter
        self._display.iterated(self.trainer.storage, self.trainer.max_iter, last=done)


class _Above(io.TextIOBase):
    """A stream whose lines appear above the bar; what another process writes to it goes where it went before."""

    def __init__(self, console: Console, before: IO[str]) -> None:
        self._console, self._before, self._process, self._line = console, before, os.getpid(), ""

    def write(self, text: str) -> int:
        if os.getpid() != self._process:
            return self._before.write(text)
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._show("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines))
        return len(text)

    def _show(self, text: str) -> None:
        self._console.print(Text.from_ansi(text), soft_wrap=True)

    def flush(self) -> None:
        """A line is shown once it is complete."""

    def finish(self) -> None:
        """Show what is left of the last line."""
        line, self._line = self._line, ""
        if line:
            self._show(line)

    def isatty(self) -> bool:
        return self._before.isatty()

    def fileno(self) -> int:
        return self._before.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._before, "encoding", "utf-8")


@contextlib.contextmanager
def _terminal_above(console: Console) -> Iterator[None]:
    """Let what goes to the terminal, by ``print``, warnings and log handlers, go above the bar."""
    replaced = {"stdout": _Above(console, sys.stdout)}
    if sys.stderr.isatty():  # else it is a file, and stays that
        replaced["stderr"] = _Above(console, sys.stderr)
    streams = {name: getattr(sys, name) for name in replaced}
    handlers = []
    for handler in _stream_handlers():
        for name, stream in streams.items():
            if handler.stream is stream:
                handlers.append((handler, stream))
                handler.setStream(replaced[name])
                handler.addFilter(_not_in_the_bar)
    for name, above in replaced.items():
        setattr(sys, name, above)
    try:
        yield
    finally:
        for name, above in replaced.items():
            above.finish()
            if getattr(sys, name) is above:  # unless somebody put another in its place
                setattr(sys, name, streams[name])
        for handler, stream in handlers:
            handler.removeFilter(_not_in_the_bar)
            handler.setStream(stream)


def _stream_handlers() -> list[logging.StreamHandler]:
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = {
        id(handler): handler
        for each in loggers
        if isinstance(each, logging.Logger)
        for handler in each.handlers
        if isinstance(handler, logging.StreamHandler)
    }
    return list(found.values())


def _not_in_the_bar(record: logging.LogRecord) -> bool:
    """Whether a record says what the bar does not: not the line of losses, nor that of how far an evaluation is."""
    if record.levelno > logging.INFO:
        return True
    if record.name.endswith(".utils.events"):
        return False
    return not (record.name.endswith(".evaluation.evaluator") and str(record.msg).startswith("Inference done"))


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(datetime.timedelta(seconds=int(seconds)))
