"""Work timed in rounds, contenders in turns, so that ratios are of one time and one state of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """The same quantity, measured in several rounds.

    Attributes:
        values: By round, at least one.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def over(self, other: Spread) -> Spread:
        """Return the ratios to another quantity of the same rounds."""
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def times(self, factor: float) -> Spread:
        """Return the spread in another unit."""
        return Spread(tuple(value * factor for value in self.values))

    def document(self) -> dict[str, Any]:
        """Return it for the JSON document."""
        return {
            "median": float(f"{self.median:.5g}"),
            "min": float(f"{min(self.values):.5g}"),
            "max": float(f"{max(self.values):.5g}"),
            "rounds": len(self.values),
        }

    def text(self, form: str) -> tuple[str, str]:
        """Return the median, and the least and the most of several rounds, in a number format."""
        ends = f"{min(self.values):{form}} to {max(self.values):{form}}"
        return f"{self.median:{form}}", ends if len(self.values) > 1 else ""


def seconds(work: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Return the seconds that a piece of work takes.

    By default they are the processor's: with one thread that is wall time on an idle machine, and it
    moves little on a busy one.
    """
    return timed(work, clock)[0]


def timed(work: Callable[[], T], clock: Clock = time.perf_counter) -> tuple[float, T]:
    """Return the seconds that a piece of work takes, and what it makes."""
    start = clock()
    made = work()
    return clock() - start, made


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.process_time
) -> dict[str, Spread]:
    """Time each piece of work once in every round; the caller has warmed them up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, clock))
    return {name: Spread(tuple(values)) for name, values in taken.items()}
