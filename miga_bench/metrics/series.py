"""A bounded summary of a quantity over video time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Bin(NamedTuple):
    """Mean of a quantity over the frames ``first`` to ``last``, both included."""

    first: int
    last: int
    mean: float


class Series:
    """Means of a quantity over equal stretches of video time, for videos of any length.

    Values go into bins of ``width`` frames; when all bins are full, neighbors are merged and the width
    doubles. Memory is ``capacity`` floats for ever. All bins but the last span ``width`` frames, so the
    mean of the bins, weighted by their frames, is the mean of the values.

    Args:
        capacity: Most bins to keep, even and at least 2.

    Raises:
        ValueError: If the capacity is odd or below 2.
    """

    def __init__(self, capacity: int = 256) -> None:
        if capacity < 2 or capacity % 2:
            raise ValueError(
                f"capacity {capacity}: bins are merged in pairs, so it is even and at least 2"
            )
        self.capacity = capacity
        self.width = 1
        self.seen = 0
        self._sums: list[float] = []

    def push(self, values: Iterable[float]) -> None:
        """Add the values of the next frames, in order; a tensor or array ``[N]`` will do."""
        for value in values:
            if self.seen == self.capacity * self.width:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self.width *= 2
            if self.seen % self.width == 0:
                self._sums.append(0.0)
            self._sums[-1] += float(value)
            self.seen += 1

    def means(self) -> list[Bin]:
        """Return the bins in order; none before the first value."""
        bins = []
        for index, total in enumerate(self._sums):
            first = index * self.width
            stop = min(first + self.width, self.seen)
            bins.append(Bin(first, stop - 1, total / (stop - first)))
        return bins
