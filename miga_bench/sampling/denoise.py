"""A pass: windows through the denoiser in batches, then one solver step for all written slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.backbones.schedule import Schedule
from miga_bench.backbones.solvers import Solver
from miga_bench.errors import NumericalError
from miga_bench.sampling.base import CommonSettings, Cost, PassCallback, PromptSchedule
from miga_bench.sampling.cache import BlockCache, CachedRow
from miga_bench.sampling.fitting import FittingDenoiser
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.rules import check_cache
from miga_bench.sampling.windows import Window, independent_groups


@dataclass
class Anchors:
    """Guidance frames kept for the whole video, one set for each prompt that has its own.

    Attributes:
        level: The level all of them stand at.
        sets: ``[m, C, H, W]`` by number of the prompt they were made under.
    """

    level: int
    sets: dict[int, Tensor] = field(default_factory=dict)

    def of(self, segment: int) -> Tensor:
        """Return the anchors of a prompt, or of the prompt before as long as it has none."""
        return self.sets[self._own(segment)]

    def forget_before(self, segment: int) -> None:
        """Drop what neither this prompt nor a later one takes."""
        own = self._own(segment)
        self.sets = {number: kept for number, kept in self.sets.items() if number >= own}

    def _own(self, segment: int) -> int:
        return max((k for k in self.sets if k <= segment), default=min(self.sets))


@dataclass
class Work:
    """Windows of one queue that are to be denoised.

    Attributes:
        queue: What they read.
        windows: At least one.
        whole: Whether to predict all frames that a window reads, context included, and not only the slots it
            writes.
        cached: Whether the cache may keep these slots. Of candidates for the same frames at most one may have
            it.
        segment: Number of the prompt that all windows get; None gives each window its own.
    """

    queue: Queue
    windows: Sequence[Window]
    whole: bool = False
    cached: bool = False
    segment: int | None = None


class WindowDenoiser:
    """Sends windows of any number of queues through the denoiser, with guidance, in batches.

    Args:
        backbone: Gives the denoiser.
        prompts: The text over the video; a window's text is that of the middle frame it writes, unless its
            work names another.
        solver: Steps the written slots; its schedule gives the timesteps.
        noise: For solvers that draw.
        guidance_scale: Classifier-free guidance ``u + scale (c - u)``; 1 leaves out the
            unconditional half.
        batch: Most windows in one denoiser call; with guidance the call holds twice as many. Processes
            that share a call hold as many each.
        cost: Counts windows and denoiser evaluations.

    Attributes:
        fitting: Does this process's rows of each call, in as many calls as it takes.
        guided_levels: Levels with guidance. A window has an unconditional half if any slot that it writes
            stands at one of them; its frames at other levels take the conditional prediction alone.
        clip_solver: Steps clips in place of ``solver``, at the same timesteps; None is ``solver`` itself.
        anchors: Guidance frames of anchored windows.
        cut: Whether the denoiser is told how many frames of a window are guidance frames, so that
            they are no temporal neighbors of the others.
        processes: Those that share each call.
        cache: Cuts windows short in which little has changed; None runs all of them in full.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        solver: Solver,
        noise: NoiseSource,
        guidance_scale: float,
        batch: int,
        cost: Cost,
    ) -> None:
        self.fitting = FittingDenoiser(backbone.denoiser, backbone.arithmetic)
        self.denoiser: Any = self.fitting
        self.device = backbone.device
        self.prompts = prompts
        self.solver = solver
        self.noise = noise
        self.guidance_scale = guidance_scale
        self.batch = batch or backbone.default_batch()
        self.processes = 1
        if backbone.team is not None:
            self.denoiser = backbone.team.split(self.denoiser)
            self.batch = backbone.team.capacity(self.batch)
            self.processes = backbone.team.size
        if backbone.meter is not None:
            self.denoiser = backbone.meter.metered(backbone.denoiser, self.denoiser)
        self.cost = cost
        self.guided_levels = range(solver.schedule.steps + 1)
        self.clip_solver: Solver | None = None
        self.anchors: Anchors | None = None
        self.cut = False
        self.cache: BlockCache | None = None

    @classmethod
    def of(
        cls,
        settings: CommonSettings,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        callback: PassCallback | None,
        opening: Backbone | None = None,
    ) -> WindowDenoiser:
        """Return the denoiser of one video: a method's settings, the backbone's solver, costs at zero.

        Args:
            settings: The method's.
            backbone: As the settings' ``reading`` returns it.
            prompts: The text over the video.
            noise: For solvers that draw.
            callback: Told of every pass.
            opening: Another reading, whose solver steps clips (see ``denoise_clip``); None is ``backbone``.

        Raises:
            UserError: The settings ask for a cache, and the backbone's denoiser takes none.
        """
        if settings.cache:
            check_cache(settings.cache, backbone)
        denoiser = cls(
            backbone,
            prompts,
            backbone.solver(backbone.schedule(settings.steps)),
            noise,
            settings.guidance_scale,
            settings.batch,
            Cost(callback),
        )
        denoiser.guided_levels = settings.guided_levels
        if opening is not None:
            denoiser.clip_solver = opening.solver(opening.schedule(settings.steps))
        if settings.cache:
            denoiser.cache = BlockCache(settings.cache)
        return denoiser

    @property
    def schedule(self) -> Schedule:
        """The schedule the solver steps on."""
        return self.solver.schedule

    @torch.inference_mode()
    def predict(self, works: Sequence[Work]) -> list[Tensor]:
        """Return for each work the prediction for its slots, window by window.

        ``[written, C, H, W]``, or ``[read, C, H, W]`` for a work that wants its windows whole.
        """
        jobs = [(number, window) for number, work in enumerate(works) for window in work.windows]
        shapes: dict[tuple[int, int], list[int]] = {}
        for job, (_, window) in enumerate(jobs):
            before = self._before(window)
            length = len(window.reads) - window.offset + before
            shapes.setdefault((length, before if self.cut else 0), []).append(job)
        results: list[Tensor] = [torch.empty(0)] * len(jobs)
        for (_, cut), alike in shapes.items():
            for first in range(0, len(alike), self.batch):
                batch = alike[first : first + self.batch]
                output = self._call([(works[jobs[job][0]], jobs[job][1]) for job in batch], cut)
                for row, job in zip(output, batch, strict=True):
                    number, window = jobs[job]
                    start = self._before(window)
                    written = row[start : start + len(window.writes)]
                    results[job] = row if works[number].whole else written
        self.cost.windows += len(jobs)
        ends = [sum(len(work.windows) for work in works[: k + 1]) for k in range(len(works))]
        return [
            torch.cat(results[end - len(work.windows) : end])
            for work, end in zip(works, ends, strict=True)
        ]

    def _before(self, window: Window) -> int:
        """Return how many frames a window sees before the first it writes: MIGA's guidance frames."""
        if not window.anchored or self.anchors is None:
            return window.offset
        return window.offset + len(next(iter(self.anchors.sets.values())))

    def is_guided(self, queue: Queue, window: Window) -> bool:
        """Tell whether a window needs an unconditional half, which is a row of its own."""
        return self.guidance_scale != 1 and any(
            queue.levels[slot] in self.guided_levels for slot in window.writes
        )

    def _call(self, batch: Sequence[tuple[Work, Window]], cut: int) -> Tensor:
        """Run one batch of equally long windows; ``[B, F, C, H, W]``."""
        rows, levels, segments, guided = [], [], [], []
        known: list[CachedRow | None] = []
        for work, window in batch:
            queue = work.queue
            segment = work.segment
            if segment is None:
                middle = queue.frames[window.writes[len(window.writes) // 2]]
                segment = self.prompts.segment(middle)
            first, last = window.reads[window.offset], window.reads[-1]
            local = queue.latents[first : last + 1]
            parts = [queue.latents[list(window.reads[: window.offset])]] if window.offset else []
            row_levels = [queue.levels[slot] for slot in window.reads]
            if window.anchored and self.anchors is not None:
                anchors = self.anchors.of(segment)
                parts.insert(0, anchors)
                row_levels = [self.anchors.level] * len(anchors) + row_levels
            contiguous = last - first + 1 == len(window.reads) - window.offset
            parts.append(
                local if contiguous else queue.latents[list(window.reads[window.offset :])]
            )
            rows.append(torch.cat(parts) if len(parts) > 1 else parts[0])
            levels.append(row_levels)
            segments.append(segment)
            written = [queue.frames[slot] for slot in window.writes]
            own = CachedRow(written, self._before(window), segment) if work.cached else None
            known.append(own)
            if self.is_guided(queue, window):
                guided.append(len(rows) - 1)
        latents = torch.stack(rows).transpose(1, 2)
        timesteps = self.schedule.timesteps[torch.tensor(levels)].to(self.device)
        text = self.prompts.texts(segments)
        more: dict[str, Any] = {"cut": cut} if cut else {}
        picked: Any = slice(None) if len(guided) == len(rows) else guided
        if guided:
            # The unconditional halves follow the windows.
            latents = torch.cat([latents, latents[picked]])
            timesteps = torch.cat([timesteps, timesteps[picked]])
            text = torch.cat([text, self.prompts.negative.expand_as(text[picked])])
        shortcut = None
        if self.cache is not None:
            known += [row and replace(row, segment=None) for row in map(known.__getitem__, guided)]
            shortcut = more["shortcut"] = self.cache.call(known)
        self.cost.nfe += len(latents)
        self.cost.nfe_latents += len(latents) * latents.shape[2]
        output = self.denoiser(latents, timesteps, text, **more).float()
        if shortcut is not None:
            self.cost.skipped += shortcut.settle()
        if guided:
            output, unconditional = output.split([len(rows), len(guided)])
            conditional = output[picked]
            mixed = torch.lerp(unconditional, conditional, self.guidance_scale)
            inside = [[level in self.guided_levels for level in levels[row]] for row in guided]
            if not all(map(all, inside)):
                alone = ~torch.tensor(inside, device=mixed.device)
                mixed = torch.where(alone[:, None, :, None, None], conditional, mixed)
            if len(guided) < len(rows):
                place = torch.tensor(guided, device=mixed.device)
                mixed = output.index_copy(0, place, mixed)
            output = mixed
        return output.transpose(1, 2)

    def step(self, part: Queue, prediction: Tensor, purpose: str) -> Queue:
        """Take slots down one level.

        Args:
            part: The slots.
            prediction: The denoiser's output for them.
            purpose: Names the noise a stochastic solver draws, unique to this walk down the levels.

        Raises:
            NumericalError: A prediction is not finite.
        """
        noise = None
        if self.solver.stochastic:
            noise = self.noise(part.frames, purpose, part.levels)
        latents, state = self.solver.step(part.latents, prediction, part.levels, part.state, noise)
        if not torch.isfinite(latents).all():
            bad = (~torch.isfinite(latents)).flatten(1).any(1).nonzero()[0, 0]
            slot = int(bad)
            raise NumericalError(
                f"the denoiser returned NaN or infinity at latent frame {part.frames[slot]}, level "
                f"{part.levels[slot]} of {self.schedule.steps}: try fp32 or bf16 weights, or a lower "
                f"guidance_scale (now {self.guidance_scale:g})"
            )
        return Queue(latents, [level - 1 for level in part.levels], part.frames, state)

    def denoise(
        self,
        queue: Queue,
        plan: list[Window],
        purpose: str,
        in_place: bool,
        segment: int | None = None,
    ) -> None:
        """Take the queue through one pass.

        Args:
            queue: Changed: every written slot goes one level down.
            plan: Its windows, front to back.
            purpose: See ``step``.
            in_place: Whether a window sees what earlier windows of the pass wrote (as the released
                VideoCrafter2 loop has it), or the queue as it was before the pass.
            segment: See ``Work``.
        """
        for group in independent_groups(plan, in_place):
            (prediction,) = self.predict([Work(queue, group, cached=True, segment=segment)])
            slots = slice(group[0].writes.start, group[-1].writes.stop)
            queue.write(slots, self.step(queue[slots], prediction, purpose))

    def denoise_clip(
        self,
        frames: int,
        start: Tensor | None = None,
        around: Callable[[float], AbstractContextManager[None]] | None = None,
    ) -> Tensor:
        """Denoise one clip of pure noise on shared levels, ``[frames, C, H, W]`` clean.

        This is what the model was trained for: the plain short clip, and the opening that seeds every queue.
        Methods that make a long video as one clip pass ``start`` and ``around``. It shows the first prompt,
        even where a later one begins within it: the queue then gives each frame its own.

        Args:
            frames: Latents of the clip.
            start: ``[frames, C, H, W]`` noise to start from; None draws it frame by frame.
            around: Returns the context for a step at a timestep.
        """
        numbers = list(range(frames))
        if start is None:
            start = self.noise(numbers, "base")
        usual, self.solver = self.solver, self.clip_solver or self.solver
        queue = Queue.fresh(start, [self.schedule.steps] * frames, numbers, self.solver)
        whole = [Window(tuple(numbers), range(frames), 0)]
        while queue.levels[0] > self.schedule.clean:
            timestep = float(self.schedule.timesteps[queue.levels[0]])
            with around(timestep) if around else nullcontext():
                self.denoise(queue, whole, "base step", in_place=False, segment=0)
            self.cost.report("base", queue.levels)
        self.solver = usual
        self.forget(numbers)
        return queue.latents

    def forget(self, frames: Iterable[int]) -> None:
        """Note that frames, by number, are gone, or continue from other noise."""
        if self.cache is not None:
            self.cache.forget(frames)
