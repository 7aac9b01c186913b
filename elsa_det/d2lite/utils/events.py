"""What happens in training: scalars, images and histograms by iteration, and those who write them down."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

from .file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_OPEN_STORAGES: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost ``with EventStorage(...)``.

    Raises:
        RuntimeError: there is none.
    """
    if not _OPEN_STORAGES:
        raise RuntimeError("get_event_storage() has to be called inside a 'with EventStorage(...)' block.")
    return _OPEN_STORAGES[-1]


def has_event_storage() -> bool:
    """Whether we are inside a ``with EventStorage(...)``."""
    return bool(_OPEN_STORAGES)


class EventStorage:
    """Keeps what was put, under the iteration at which it was put. Used as a context: ``with EventStorage() as s``."""

    def __init__(self, start_iter: int = 0) -> None:
        self._iter = start_iter
        self._scope = ""
        self._buffers: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a number (or a tensor of one).

        Args:
            name: its name; the name scope goes before it.
            value: anything that ``float()`` takes.
            smoothing_hint: whether it is noisy, so that writers should show the median of a window.
            cur_iter: iteration to put it under, if not the current one.

        Raises:
            ValueError: the same name was put with the other hint.
        """
        name, value = self._scope + name, float(value)
        iteration = self._iter if cur_iter is None else cur_iter
        if self._hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"Scalar '{name}' was put with smoothing_hint={not smoothing_hint} before.")
        self._buffers[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Add several: ``put_scalars(loss_cls=0.5, loss_box=0.1)``."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Add an RGB image (3, H, W) for tensorboard: uint8 in [0, 255] or float in [0, 1]; tensor or array."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Add the histogram of a tensor of any shape for tensorboard."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """All values of a scalar.

        Raises:
            KeyError: it was never put.
        """
        if name not in self._buffers:
            raise KeyError(f"No history metric available for {name}!")
        return self._buffers[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All values of every scalar, by name."""
        return self._buffers

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of every scalar and the iteration it belongs to."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like :meth:`latest`, with noisy scalars replaced by their median over the last ``window_size`` iterations."""
        return {
            name: (self._smoothed(name, window_size) if self._hints[name] else value, iteration)
            for name, (value, iteration) in self._latest.items()
        }

    def _smoothed(self, name: str, window_size: int) -> float:
        return self._buffers[name].median(self.count_samples(name, window_size))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a scalar were put in its last ``window_size`` iterations."""
        values = self._buffers[name].values()
        count = 0
        while count < len(values) and values[-1 - count][1] > values[-1][1] - window_size:
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """Which scalars are noisy."""
        return self._hints

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """Another name of :attr:`iter`."""
        return self._iter

    def step(self) -> None:
        """On to the next iteration."""
        self._iter += 1

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Within it, scalars get ``name/`` before their names. Scopes replace one another, they do not nest."""
        outer, self._scope = self._scope, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._scope = outer

    def clear_images(self) -> None:
        """Forget the images; whoever writes them calls it."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; whoever writes them calls it."""
        self._histograms = []

    def __enter__(self) -> EventStorage:
        _OPEN_STORAGES.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        closed = _OPEN_STORAGES.pop()
        assert closed is self, "event storages are closed in the reverse order of opening"


class EventWriter:
    """Takes events from the current storage and writes them somewhere."""

    def write(self) -> None:
        """Called every so many iterations, inside the storage's context."""
        raise NotImplementedError

    def close(self) -> None:
        """Called at the end."""


class _NewScalars:
    """What became known since the last time it was asked for."""

    def __init__(self, window_size: int) -> None:
        self._window_size = window_size
        self._seen_until = -1

    def take(self, storage: EventStorage) -> list[tuple[str, float, int]]:
        """Name, value and iteration of each scalar, noisy ones smoothed."""
        latest = storage.latest_with_smoothing_hint(self._window_size)
        new = [(name, value, iteration) for name, (value, iteration) in latest.items() if iteration > self._seen_until]
        self._seen_until = max((iteration for *_, iteration in new), default=self._seen_until)
        return new


class JSONWriter(EventWriter):
    """One line of JSON for every iteration that has scalars, appended to a file: ``{"iteration": 19, "lr": 0.1}``."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """``window_size``: iterations of the median for noisy scalars."""
        self._file = PathManager.open(json_file, "a")
        self._scalars = _NewScalars(window_size)

    def write(self) -> None:
        lines: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name, value, iteration in self._scalars.take(get_event_storage()):
            lines[iteration][name] = value
        for iteration, scalars in lines.items():
            self._file.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file.flush()
        with contextlib.suppress(AttributeError, OSError):  # not every kind of file has a descriptor
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Scalars, images and histograms for tensorboard. The only one to take images and histograms: it clears them."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """``window_size``: iterations of the median for noisy scalars; ``kwargs`` go to ``SummaryWriter``."""
        self._scalars = _NewScalars(window_size)
        self._writer_args = {"log_dir": log_dir, **kwargs}

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed by everyone

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        for scalar in self._scalars.take(storage):
            self._writer.add_scalar(*scalar)
        for image in storage._vis_data:
            self._writer.add_image(*image)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """One log line with time left, losses, ``[metric]`` scalars, times, learning rate and GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """``max_iter``: iterations in all, for the time left; ``window_size``: iterations of the median of losses."""
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and clock of the last call

    def _time_left(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        remaining = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = float(storage.history("time").median(1000) * remaining)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        else:  # nobody measures iterations, so we do, from write to write
            previous, self._last_write = self._last_write, (storage.iter, time.perf_counter())
            if previous is None or previous[0] == storage.iter:
                return None
            seconds = (self._last_write[1] - previous[1]) / (storage.iter - previous[0]) * remaining
        return str(datetime.timedelta(seconds=int(seconds)))

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # training is over, and other writers' last call is not for us
        known = storage.histories()

        def medians(mark: str) -> str:
            shown = [name for name in storage.latest() if mark in name]
            return "  ".join(f"{name}: {storage._smoothed(name, self._window_size):.4g}" for name in shown)

        times = ""  # may be missing in the first iterations, and with other trainers
        if "time" in known:
            times += f"time: {known['time'].global_avg():.4f}  last_time: {known['time'].latest():.4f}  "
        if "data_time" in known:
            average = known["data_time"].avg(storage.count_samples("data_time", self._window_size))
            times += f"data_time: {average:.4f}  last_data_time: {known['data_time'].latest():.4f}  "
        rate = f"{known['lr'].latest():.5g}" if "lr" in known else "N/A"
        left = self._time_left(storage)
        eta = f"eta: {left}  " if left else ""
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""
        self.logger.info(
            f" {eta}iter: {storage.iter}  {medians('loss')}  {medians('[metric]')}  {times} lr: {rate}  {memory}"
        )
