"""The loop of an evaluation, which others may watch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..d2 import inference_on_dataset

#: what ``inference_on_dataset`` calls at on_start, before_inference, after_inference and on_end
Callbacks = Mapping[str, Callable[[], Any]]

_WATCHERS: list[Callable[[int], Callbacks]] = []


@contextlib.contextmanager
def watch_inference(watcher: Callable[[int], Callbacks]) -> Iterator[None]:
    """Within it, ``watcher`` is asked at the start of each :func:`run_inference` for the callbacks of that one.

    Args:
        watcher: From the number of batches to the callbacks.
    """
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


def run_inference(model: Any, loader: Any, evaluator: Any) -> Any:
    """Detectron2's ``inference_on_dataset``, watched by the innermost :func:`watch_inference`."""
    return inference_on_dataset(model, loader, evaluator, _WATCHERS[-1](len(loader)) if _WATCHERS else None)
