"""Progress on stderr: windows done of the estimated total, with the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from torch import Tensor

from miga_bench.harness.bars import Bars, PlainLines
from miga_bench.harness.video import Watcher
from miga_bench.sampling.base import PassReport


class ProgressBar(Watcher):
    """A bar, or where stderr is no terminal a line about every minute.

    An endless video shows what is left until its first frame, then what was made.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._bar = Bars(quiet)
        self._lines = PlainLines(not quiet and self._bar.disable)
        self._task = self._bar.add_task("loading", total=None, frames="")
        self._frames: int | None = None
        self._made = self._done = 0
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
        self._frames, self._made = frames, 0
        self._done, self._total = 0, windows
        self._lines.begin()
        self._bar.update(self._task, total=windows, description="denoising")
        self._show()

    def noticed(self, line: str) -> None:
        """Print the line above the bar, also where there is no bar."""
        self._bar.console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)

    def passed(self, report: PassReport) -> None:
        """Advance to the windows done; searches may take more than was planned."""
        self._done = report.windows - report.search_windows
        self._bar.update(
            self._task,
            completed=self._done,
            description=f"{report.stage} pass {report.index + 1}",
        )
        self._tell()

    def wrote(self, frames: Tensor, total: int) -> None:
        """Show how many frames the file holds."""
        self._made = total
        if self._frames is None and self._total is not None:
            # the windows that were known are those before the first frame; rich takes None for no change
            self._total = self._bar.tasks[0].total = None
        self._show()
        self._tell()

    def _show(self) -> None:
        self._bar.update(self._task, frames=self._count())

    def _count(self) -> str:
        of = "" if self._frames is None else f"/{self._frames}"
        return f"{self._made}{of} frames"

    def _tell(self) -> None:
        self._lines.tell(self._count(), self._done, self._total)


class RunProgress(ProgressBar):
    """Two bars: the video in the making, and all that this process has to make.

    Args:
        costs: What each video is expected to take, in order and in any unit.
        quiet: Show nothing.
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
            completed=self._before(),
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
        self._bar.update(self._all, completed=self._spent())

    def _before(self) -> float:
        """Return the cost of the videos before this one."""
        return sum(self._costs[: self._begun - 1])

    def _spent(self) -> float:
        """Return the cost of all work done: of this video as much as its windows say."""
        share = min(self._done / self._total, 1.0) if self._total else 0.0
        return self._before() + share * self._costs[self._begun - 1]

    def _tell(self) -> None:
        which = f"video {self._begun} of {len(self._costs)}, {self._count()}"
        self._lines.tell(which, self._spent(), sum(self._costs))
