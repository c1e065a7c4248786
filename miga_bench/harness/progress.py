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
    """Two bars: the video in the making, and all that this process has to make and to score.

    Args:
        costs: What each video is expected to take, in order and in any unit; 0 for one that is there.
        quiet: Show nothing.
    """

    def __init__(self, costs: Sequence[int], quiet: bool = False) -> None:
        super().__init__(quiet)
        # where all is there and only to be scored, one takes what another does
        self._costs = list(costs) if any(costs) else [1] * len(costs)
        self._over, self._gone = 0, 0.0  # videos that are through, and what they cost
        self._cost = 0
        self._doing: str | None = None  # other than to make the video
        self._said: set[str] = set()
        self._all = self._bar.add_task("all videos", total=sum(self._costs), frames="")

    def begin(self, place: int) -> None:
        """Turn to a video, by its place in the order; it may be there already.

        Args:
            place: From 0.
        """
        self._cost, self._doing = self._costs[place], ""
        self._done, self._total = 0, None
        self._bar.reset(self._task)
        self._tell_all()

    def started(self, windows: int | None, frames: int | None) -> None:
        """Make the video."""
        self._doing = None
        super().started(windows, frames)

    def scoring(self) -> None:
        """Score the video, which is there."""
        self._doing = "scoring"
        self._bar.update(self._task, description=self._doing)
        self._tell_all()

    def end(self) -> None:
        """Be through with the video, whatever became of it."""
        self._over, self._gone, self._cost = self._over + 1, self._gone + self._cost, 0
        self._bar.update(self._all, completed=self._gone)

    def waiting(self) -> None:
        """Say that others are at work still: on a terminal once, else about every minute."""
        line = "waiting for the other processes"
        if not self._bar.disable:
            self.noticed(line)
        self._lines.tell(line)

    def noticed(self, line: str) -> None:
        """Print a line once, however many videos say it."""
        if line not in self._said:
            self._said.add(line)
            super().noticed(line)

    def passed(self, report: PassReport) -> None:
        """Advance both bars."""
        super().passed(report)
        self._bar.update(self._all, completed=self._spent())

    def _spent(self) -> float:
        """Return the cost of all work done: of this video as much as its windows say."""
        share = min(self._done / self._total, 1.0) if self._total else 0.0
        return self._gone + share * self._cost

    def _which(self) -> str:
        return f"video {self._over + 1} of {len(self._costs)}"

    def _tell_all(self) -> None:
        self._bar.update(self._all, completed=self._spent(), description=self._which())
        self._tell()

    def _tell(self) -> None:
        doing = self._count() if self._doing is None else self._doing
        which = ", ".join(filter(None, (self._which(), doing)))
        self._lines.tell(which, self._spent(), sum(self._costs))
