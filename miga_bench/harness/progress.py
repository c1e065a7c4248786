"""Progress on stderr: windows done of the estimated total, with the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from miga_bench.harness.generate import Watcher
from miga_bench.sampling.base import PassReport


class ProgressBar(Watcher):
    """A rich bar; an endless video shows what was made instead of what is left.

    Args:
        quiet: Show nothing, as when stderr is not a terminal.
    """

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[frames]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("loading", total=None, frames="")
        self._total: int | None = None

    def __enter__(self) -> ProgressBar:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def started(self, windows: int | None, frames: int | None) -> None:
        """Set the totals."""
        self._total = frames
        self._bar.update(self._task, total=windows, description="denoising")
        self._show(0)

    def noticed(self, line: str) -> None:
        """Print the line above the bar, also where there is no bar."""
        self._bar.console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)

    def passed(self, report: PassReport) -> None:
        """Advance to the windows done; searches may take more than was planned."""
        self._bar.update(
            self._task,
            completed=report.windows - report.search_windows,
            description=f"{report.stage} pass {report.index + 1}",
        )

    def wrote(self, frames: Tensor, total: int) -> None:
        """Show how many frames the file holds."""
        self._show(total)

    def _show(self, frames: int) -> None:
        of = "" if self._total is None else f"/{self._total}"
        self._bar.update(self._task, frames=f"{frames}{of} frames")


class RunProgress(ProgressBar):
    """Two bars: the video in the making, and all that this process has to make.

    Args:
        costs: The windows that each video is expected to take, in order.
        quiet: Show nothing, as when stderr is not a terminal.
    """

    def __init__(self, costs: Sequence[int], quiet: bool = False) -> None:
        super().__init__(quiet)
        self._costs = list(costs)
        self._begun = 0
        self._said: set[str] = set()
        self._all = self._bar.add_task("all videos", total=sum(costs), frames="")

    def started(self, windows: int | None, frames: int | None) -> None:
        """Begin the next video."""
        self._begun += 1
        self._bar.reset(self._task)
        super().started(windows, frames)
        self._bar.update(
            self._all,
            completed=sum(self._costs[: self._begun - 1]),
            description=f"video {self._begun} of {len(self._costs)}",
        )

    def noticed(self, line: str) -> None:
        """Print a line once, however many videos say it."""
        if line not in self._said:
            self._said.add(line)
            super().noticed(line)

    def passed(self, report: PassReport) -> None:
        """Advance both bars."""
        super().passed(report)
        done = sum(self._costs[: self._begun - 1]) + report.windows - report.search_windows
        self._bar.update(self._all, completed=done)
