"""What was measured, and the arithmetic on it: ratios, the worst of them, growth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .cases import Case


@dataclass
class Record:
    """A peer in a direction: median seconds of every process per malloc mode, and the peak bytes above the inputs."""

    case: Case
    peer: str
    direction: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: float | None = None
    reason: str = ""  #: why something is missing

    def median(self, mode: str) -> float | None:
        """Median over the processes."""
        return statistics.median(self.seconds[mode]) if self.seconds.get(mode) else None


class Records:
    """All that was measured, found by case, peer and direction."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = {(r.case, r.peer, r.direction): r for r in records}

    def __iter__(self) -> Any:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            self._records[record.case, record.peer, record.direction] = record

    def find(self, case: Case, peer: str, direction: str) -> Record:
        """The record, or an empty one that says that this was not measured."""
        empty = Record(case, peer, direction, reason="not measured")
        return self._records.get((case, peer, direction), empty)

    def cases(self) -> list[Case]:
        return list(dict.fromkeys(record.case for record in self))

    def to_list(self) -> list[dict[str, Any]]:
        """As plain values for JSON."""
        return [asdict(record) for record in self]


def time_ratios(slow: Record, fast: Record, mode: str) -> list[float]:
    """Seconds of ``slow`` over those of ``fast``, process by process."""
    return [s / f for s, f in zip(slow.seconds.get(mode, []), fast.seconds.get(mode, []))]


def worst(ratios: Sequence[float], *, largest: bool = False) -> float | None:
    """The smallest of ratios that are to be large, or the largest of those that are to be small; None for none."""
    if not ratios:
        return None
    return max(ratios) if largest else min(ratios)


def slope(pixels: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the line through (log pixels, log value) by least squares: 1 is growth in proportion.

    Raises:
        ValueError: there are fewer than two different numbers of pixels, or a value is not positive.
    """
    if len(set(pixels)) < 2 or min([*pixels, *values]) <= 0:
        raise ValueError(f"growth needs two sizes or more and positive values, got {list(pixels)} and {list(values)}")
    x, y = ([math.log(v) for v in column] for column in (pixels, values))
    return statistics.linear_regression(x, y).slope


def time_slopes(records: Sequence[Record], mode: str) -> list[float]:
    """The growth of a peer's time over its cases' pixels, process by process; empty where fewer than two sizes ran."""
    measured = [record for record in records if record.seconds.get(mode)]
    if len(measured) < 2:
        return []
    processes = min(len(record.seconds[mode]) for record in measured)
    pixels = [record.case.pixels for record in measured]
    return [slope(pixels, [record.seconds[mode][i] for record in measured]) for i in range(processes)]


def memory_slope(records: Sequence[Record]) -> float | None:
    """The growth of a peer's peak memory over its cases' pixels; None where fewer than two sizes ran."""
    measured = [record for record in records if record.peak]
    if len(measured) < 2:
        return None
    return slope([r.case.pixels for r in measured], [float(r.peak or 0) for r in measured])
