"""Stage 2 as a pipeline behind stage 1 (MIGA, section 3.2 and algorithm 5), at constant memory.

The paper collects all latents that left stage 1 on one level and then denoises them in sliding
windows, level by level. Here every such pass is a stage of a pipeline: a latent moves on as soon as the
latents its window reads are there. The windows are those of the collected computation, so the
result is the same; a stage holds about one window of latents, whatever the video's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from miga_bench.sampling.denoise import WindowDenoiser, Work
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.schedule import Schedule
from miga_bench.sampling.solvers import Solver
from miga_bench.sampling.windows import Window, miga_windows, partition


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
    """One unified pass over an endless row of latents on one level.

    It sees the row through a queue that begins at the start of its next window: what lies before
    that is written and, since windows read only from their start on, never read again.

    Args:
        index: Number of the pass, which shifts its windows; see ``partition``.
        plan: Geometry of its windows.
    """

    def __init__(self, index: int, plan: PassPlan) -> None:
        self.shift = index % plan.stride
        self.plan = plan
        self.waiting: Queue | None = None
        self.begun = False
        self.closed = False

    def push(self, run: Queue) -> None:
        """Take the next latents of the row."""
        self.waiting = run if self.waiting is None else self.waiting + run

    def ready(self) -> list[Window]:
        """Return the windows that can run now, in slots of ``waiting``."""
        if self.waiting is None:
            return []
        length, stride, local = len(self.waiting), self.plan.stride, self.plan.local
        shift = 0 if self.begun else self.shift
        if self.closed:
            ranges = partition(length, stride, local, shift)
        else:
            # All ranges but the last ones of a partition are the same however long the row becomes.
            stops = range(shift or stride, length - local + 1, stride)
            ranges = [range(max(stop - stride, 0), stop) for stop in stops]
        window, anchors = self.plan.window, self.plan.anchors
        return miga_windows(ranges, length, window, anchors, zigzag=1, reach="anchor")

    def advance(self, count: int) -> Queue:
        """Remove and return the ``count`` slots that were just denoised."""
        assert self.waiting is not None
        run = self.waiting.pop(count)
        self.begun = True
        if not len(self.waiting):
            self.waiting = None
        return run


class Pipeline:
    """The unified passes of stage 2 and of the re-noise pass, one behind the other.

    Args:
        denoiser: Runs the windows.
        plan: Geometry of the windows.
        levels: Levels from which stage 2 steps, in order.
        renoise: Levels from which the re-noise pass steps; empty leaves it out. Its latents are taken
            from clean to the first of these levels by fresh noise.
    """

    def __init__(
        self, denoiser: WindowDenoiser, plan: PassPlan, levels: range, renoise: range
    ) -> None:
        self.denoiser = denoiser
        self.levels = [*levels, *renoise]
        self.passes = [PipelinePass(k, plan) for k in [*range(len(levels)), *range(len(renoise))]]
        self.renoise_at = len(levels) if len(renoise) else None
        self.finished: list[Queue] = []

    def push(self, run: Queue) -> None:
        """Take latents that left stage 1."""
        self._enter(0, run)

    def close(self) -> None:
        """Say that no more latents come."""
        if self.passes:
            self.passes[0].closed = True

    def _enter(self, number: int, run: Queue) -> None:
        """Hand latents to a pass, prepared as it takes them, or to the output behind the last."""
        if number in (len(self.passes), self.renoise_at):
            self.denoiser.forget(run.frames)
        if number == len(self.passes):
            self.finished.append(run)
            return
        level = self.levels[number]
        if number == self.renoise_at:
            run = renoised(
                run, level, self.denoiser.schedule, self.denoiser.noise, self.denoiser.solver
            )
        elif number == 0:
            # A latent enters stage 2 with a fresh history (order 1 first), as released.
            run = Queue.fresh(run.latents, [level] * len(run), run.frames, self.denoiser.solver)
        self.passes[number].push(run)

    def _purpose(self, number: int) -> str:
        late = self.renoise_at is not None and number >= self.renoise_at
        return "renoise step" if late else "stage 2 step"

    def run(self) -> Iterator[Queue]:
        """Denoise whatever can be, all passes' windows in one batch, and yield what is finished."""
        yield from self._take_finished()
        while work := [(k, w) for k, p in enumerate(self.passes) if (w := p.ready())]:
            works = []
            for number, windows in work:
                waiting = self.passes[number].waiting
                assert waiting is not None
                works.append(Work(waiting, windows, cached=True))
            predictions = self.denoiser.predict(works)
            stepped = []
            for (number, windows), prediction in zip(work, predictions, strict=True):
                run = self.passes[number].advance(windows[-1].writes.stop)
                stepped.append(self.denoiser.step(run, prediction, self._purpose(number)))
            for (number, _), run in zip(work, stepped, strict=True):
                self._enter(number + 1, run)
            self._pass_on_closing()
            self.denoiser.cost.report("stage2", [self.levels[number] - 1 for number, _ in work])
            yield from self._take_finished()

    def _pass_on_closing(self) -> None:
        for before, after in zip(self.passes, self.passes[1:], strict=False):
            after.closed = before.closed and before.waiting is None

    def _take_finished(self) -> Iterator[Queue]:
        finished, self.finished = self.finished, []
        yield from finished


def renoised(
    run: Queue, level: int, schedule: Schedule, noise: NoiseSource, solver: Solver
) -> Queue:
    """Take clean latents back to ``level`` by fresh noise; their history starts anew."""
    levels = [level] * len(run)
    latents = schedule.add_noise(run.latents, levels, noise(run.frames, "renoise"))
    return Queue.fresh(latents, levels, run.frames, solver)
