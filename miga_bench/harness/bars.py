"""Bars on a terminal of any width, and a plain line about every minute where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

WIDE = 72  # columns of a terminal from which on there is room for a bar
NUMBERS = 32  # columns that the numbers behind it take
EVERY = 60.0  # seconds between plain lines


class Description(ProgressColumn):
    """What is done, cut where a narrow terminal has no room for it beside the numbers."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> Text:
        """Return the description."""
        text = Text(task.description)
        text.truncate(max(self._console.width - NUMBERS, 4), overflow="ellipsis")
        return text


class Bars(Progress):
    """A rich progress display that keeps its numbers on a narrow terminal: its bar goes first.

    Args:
        hidden: Show nothing; always so where stderr is no terminal.
    """

    def __init__(self, hidden: bool = False) -> None:
        self._terminal = console = Console(stderr=True)
        # columns that may wrap are what rich narrows first, and the clocks would be by default
        after = (
            TextColumn("{task.fields[frames]}"),
            TimeElapsedColumn(Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        )
        self._narrow: tuple[str | ProgressColumn, ...] = (Description(console), *after)
        self._wide: tuple[str | ProgressColumn, ...] = (Description(console), BarColumn(), *after)
        super().__init__(
            *self._wide,
            console=console,
            disable=hidden or not console.is_terminal,
            transient=True,
        )

    def get_renderables(self) -> Any:
        """Yield the table, with a bar where there is room for one now."""
        self.columns = self._wide if self._terminal.width >= WIDE else self._narrow
        yield from super().get_renderables()


class PlainLines:
    """A line on stderr about every minute, for logs; shorter work has none.

    Args:
        shown: Whether to print any.
        clock: Seconds.
    """

    def __init__(self, shown: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown, self._clock = shown, clock
        self._begun = self._last = clock()
        self._loaded: float | None = None

    def begin(self) -> None:
        """Estimate the time left from the work since the first call, so that loading does not count."""
        if self._loaded is None:
            self._loaded = self._clock()

    def tell(self, what: str, done: float = 0, total: float | None = None) -> None:
        """Print the line if it is time to.

        Args:
            what: What is done so far, in words.
            done: How much of ``total`` is done.
            total: All there is to do; None where nobody knows.
        """
        now = self._clock()
        if not self._shown or now - self._last < EVERY:
            return
        self._last = now
        line = f"miga-bench: {what}, {hours(now - self._begun)} elapsed"
        if total and done:
            since = self._begun if self._loaded is None else self._loaded
            left = (now - since) * max(total - done, 0) / done
            line += f", about {hours(left)} left"
        print(line, file=sys.stderr, flush=True)


def hours(seconds: float) -> str:
    """Return a time as a clock shows it: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
