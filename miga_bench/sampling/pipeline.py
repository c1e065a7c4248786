"""Stage 2 as a pipeline behind stage 1 (MIGA, section 3.2 and algorithm 5), at constant memory.

The paper collects all latents that left stage 1 on one level and then denoises them in sliding windows, level
by level. Here every such pass is a stage of a pipeline: a latent moves on as soon as the latents its window
reads are there or, where processes share each call, when there is work for all of them. The windows are those
of the collected computation, so the result is the same; a stage holds about one window of latents (in a team a
few more), whatever the video's length. The window boundaries are known from the start, so a window need not
wait for more than it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from miga_bench.backbones.schedule import Schedule
from miga_bench.backbones.solvers import Solver
from miga_bench.sampling.denoise import WindowDenoiser, Work
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.windows import Window, miga_windows


@dataclass(frozen=True)
class PassPlan:
    """Geometry of the passes of stage 2.

    Attributes:
        window: f0, frames the denoiser sees.
        stride: Slots written per window.
        anchors: Anchors before every window; 0 leaves them out.
    """

    window: int
    stride: int
    anchors: int

    @property
    def local(self) -> int:
        """Slots a window sees besides its anchors."""
        return self.window - self.anchors


class PipelinePass:
    """One unified pass over a row of latents on one level, endless or of a known length.

    It sees the row through a queue that begins at the start of its next window: what lies before that has
    been written and is never read again, since windows read only from their start on.

    Args:
        index: Number of the pass, which shifts its windows; see ``partition``.
        plan: Geometry of its windows.
        length: Latents of the whole row; None is endless.
        early: If true, a window runs as soon as its inputs have arrived; if false, it also waits until a
            further ``local`` latents have arrived after its last written slot.
    """

    def __init__(self, index: int, plan: PassPlan, length: int | None, early: bool) -> None:
        self.plan, self.length, self.early = plan, length, early
        self.shift = index % plan.stride
        self.waiting: Queue | None = None
        self.written = 0

    def push(self, part: Queue) -> None:
        """Take the next latents of the row."""
        self.waiting = part if self.waiting is None else self.waiting + part

    def ready(self) -> list[Window]:
        """Return the windows that can run now, in slots of ``waiting``."""
        waiting = 0 if self.waiting is None else len(self.waiting)
        first, there = self.written, self.written + waiting
        ranges, start = [], first
        while start < there:
            stop = self._stop(start)
            needed = (start if self.early else stop) + self.plan.local
            if there < needed and there != self.length:
                break
            ranges.append(range(start - first, stop - first))
            start = stop
        window, anchors = self.plan.window, self.plan.anchors
        return miga_windows(ranges, waiting, window, anchors, zigzag=1, reach="anchor")

    def _stop(self, start: int) -> int:
        """Return where the window that starts at ``start`` stops writing, as ``partition`` cuts."""
        stop = start + self.plan.stride
        if start == 0 and self.shift:
            stop = self.shift
        if self.length is None:
            return stop
        last = self.length - self.plan.local
        return self.length if start >= last else min(stop, last)

    def pop(self, count: int) -> Queue:
        """Remove and return the ``count`` slots that were just denoised."""
        assert self.waiting is not None
        part = self.waiting.pop(count)
        self.written += count
        if not len(self.waiting):
            self.waiting = None
        return part


class Pipeline:
    """The unified passes of stage 2 and of the re-noise pass, one behind the other.

    Args:
        denoiser: Runs the windows.
        plan: Geometry of the windows.
        levels: Levels from which stage 2 steps, in order.
        renoise: Levels from which the re-noise pass steps; empty leaves it out. Its latents are taken
            from clean to the first of these levels by fresh noise.
        length: Latents that will be pushed; None is without end.
        early: See ``PipelinePass``; the windows are the same, but they run at another time.

    Attributes:
        least: Rows of the windows that must be ready before any runs, as long as latents enter: one for
            each process of a team. A pass that is behind the others has but one window at a time.
        entered: Latents pushed so far.
    """

    def __init__(
        self,
        denoiser: WindowDenoiser,
        plan: PassPlan,
        levels: range,
        renoise: range,
        length: int | None,
        early: bool = True,
    ) -> None:
        self.denoiser = denoiser
        self.levels = [*levels, *renoise]
        self.passes = [
            PipelinePass(k, plan, length, early)
            for k in [*range(len(levels)), *range(len(renoise))]
        ]
        self.renoise_at = len(levels) if len(renoise) else None
        self.finished: list[Queue] = []
        self.length, self.entered = length, 0
        self.least = denoiser.processes if early else 1

    def push(self, part: Queue) -> None:
        """Take latents that left stage 1."""
        self.entered += len(part)
        self._enter(0, part)

    def _enter(self, number: int, part: Queue) -> None:
        """Hand latents to a pass, in the form it takes, or to the output after the last pass."""
        if number in (len(self.passes), self.renoise_at):
            self.denoiser.forget(part.frames)
        if number == len(self.passes):
            self.finished.append(part)
            return
        level = self.levels[number]
        if number == self.renoise_at:
            part = renoised(
                part, level, self.denoiser.schedule, self.denoiser.noise, self.denoiser.solver
            )
        elif number == 0:
            # A latent enters stage 2 with a fresh history (order 1 first), as released.
            part = Queue.fresh(part.latents, [level] * len(part), part.frames, self.denoiser.solver)
        self.passes[number].push(part)

    def _purpose(self, number: int) -> str:
        late = self.renoise_at is not None and number >= self.renoise_at
        return "renoise step" if late else "stage 2 step"

    def advance(self) -> Iterator[Queue]:
        """Denoise what is ready, the windows of all passes in one batch, and yield what is finished."""
        yield from self._take_finished()
        while work := self._wave():
            works = []
            for number, windows in work:
                waiting = self.passes[number].waiting
                assert waiting is not None
                works.append(Work(waiting, windows, cached=True))
            predictions = self.denoiser.predict(works)
            stepped = []
            for (number, windows), prediction in zip(work, predictions, strict=True):
                part = self.passes[number].pop(windows[-1].writes.stop)
                stepped.append(self.denoiser.step(part, prediction, self._purpose(number)))
            for (number, _), part in zip(work, stepped, strict=True):
                self._enter(number + 1, part)
            self.denoiser.cost.report("stage2", [self.levels[number] - 1 for number, _ in work])
            yield from self._take_finished()

    def _wave(self) -> list[tuple[int, list[Window]]]:
        """Return the windows that are ready, by pass; none while they are too few."""
        work, rows = [], 0
        for number, one in enumerate(self.passes):
            waiting, windows = one.waiting, one.ready()
            if waiting is not None and windows:
                work.append((number, windows))
                rows += sum(1 + self.denoiser.is_guided(waiting, window) for window in windows)
        return work if rows >= self.least or self.entered == self.length else []

    def _take_finished(self) -> Iterator[Queue]:
        finished, self.finished = self.finished, []
        yield from finished


def renoised(
    part: Queue, level: int, schedule: Schedule, noise: NoiseSource, solver: Solver
) -> Queue:
    """Take clean latents back to ``level`` with fresh noise; their solver history starts anew."""
    levels = [level] * len(part)
    latents = schedule.add_noise(part.latents, levels, noise(part.frames, "renoise"))
    return Queue.fresh(latents, levels, part.frames, solver)
