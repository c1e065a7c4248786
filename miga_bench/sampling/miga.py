"""MIGA (ICML 2026, arXiv 2605.18233): two-stage alignment and dual consistency.

Stage 1 (zigzag iterative denoising, section 3.2): the queue's level changes only every L_zig slots,
``Q_s1 = { z^1 .. z^Lz at tau_e | ... | z^.. at tau_T }``. A pass takes all slots down one level, the front
chunk leaves one level below tau_e, a chunk of noise enters at the back. Stage 2: what left stage 1
shares one level and is finished in sliding windows, the condition the model was trained in; then, in the
released code and not in the paper, it is taken back up a few levels and denoised once more (re-noise pass).
Long-range guidance (section 3.3) prepends cleaner slots to every window; self-reflection (section 3.4) is
in ``reflection.py``, the streaming stage 2 in ``pipeline.py``.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.sampling.base import CommonSettings, PassCallback, PromptSchedule, Sampler
from miga_bench.sampling.denoise import Anchors, WindowDenoiser
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.pipeline import PassPlan, Pipeline
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.reflection import Pooling, Reflection
from miga_bench.sampling.rules import check_common, require
from miga_bench.sampling.windows import Reach, growth_partition, miga_windows, partition

# Growth ends where the front is this many levels above the exit, a chunk short of a full queue, as in both
# released loops. It decides only which passes cut the queue as a growing one, with the remainder at the front,
# and are judged by reflection of ``growth``; the passes after it rotate their cuts. With 1 or 3 that is one
# pass more or fewer: another video than the release's. With 0 the front passes the exit unseen.
GROWTH_ENDS = 2


@dataclass(frozen=True)
class MigaSettings(CommonSettings):
    """Settings of MIGA, in the paper's symbols where it has one.

    Attributes:
        zigzag: L_zig, slots of a chunk, at most the window. Where it does not divide the window, the
            queue begins with the opening clip's whole chunks and leaves out the rest of it.
        guidance_frames: m, guidance frames of a window; 0 turns long-range guidance off.
        guidance_reach: ``chunks`` (as released), ``head`` (the paper's formula) or ``anchor`` (latents of
            the opening clip, kept nearly clean for the whole video, in stage 2 too). Which of the first
            two the paper's numbers were made with is open.
        stage2_steps: Unified steps of stage 2; 0 turns it off.
        renoise: Unified steps of the re-noise pass; 0 turns it off.
        stride: Slots written per window.
        reflection: ``off``, ``continuous`` (for as long as the video runs) or ``growth`` (only while the
            queue fills, as released).
        reflection_threshold: delta, the drop of similarity that starts a search.
        reflection_level: Level of the judged chunk.
        reference_chunks: Chunks the judged one is compared with, and all that a search sees before it: where
            they and one more are less than a window, it sees shorter ones than the model was trained on.
        candidates: n_samp, tails drawn in a search.
        guidance_cut: Keep guidance frames from being temporal neighbors of the window's first frame in
            convolutions and norms (VideoCrafter2); they are still attended to.
        released: Follow the released code of the backbone's family, quirks included. With another zigzag than
            the release's, guidance frames still stand in the middle of their chunks, and one that does not
            divide the window leaves out the rest of the opening clip, as here and not as there.
    """

    zigzag: int
    guidance_frames: int
    guidance_reach: Reach
    stage2_steps: int
    renoise: int
    stride: int
    reflection: Literal["off", "continuous", "growth"]
    reflection_threshold: float
    reflection_level: int
    reference_chunks: int
    candidates: int
    guidance_cut: bool = False
    released: bool = False


@dataclass(frozen=True)
class Quirks:
    """Where a family's released code departs from the paper; the defaults follow the paper.

    Attributes:
        in_place_growth: Passes of the growing queue update it window by window, front to back.
        in_place_stage1: The same for the passes of stage 1.
        growth_from_opening: Chunks that enter while the queue grows are the opening clip's last latent
            at the top level, not pure noise.
        stage1_from_opening: The same for the chunks that enter afterwards.
        appends: When chunks enter stage 1: as ``needed`` for the length, ``always``, or only behind a
            ``full`` queue, one whose back is one level below the top.
        stage2_late: How many levels above their own stage 2 steps its latents.
        dropped: Windows at the end of the video that are made but not handed out.
        pooling: See ``reflection.similarity``.
    """

    in_place_growth: bool = False
    in_place_stage1: bool = False
    growth_from_opening: bool = False
    stage1_from_opening: bool = False
    appends: Literal["needed", "always", "full"] = "needed"
    stage2_late: int = 0
    dropped: int = 0
    pooling: Pooling = "frames"


RELEASED = {
    "videocrafter2": Quirks(
        in_place_growth=True,
        in_place_stage1=True,
        growth_from_opening=True,
        appends="always",
        pooling="set",
    ),
    "wan": Quirks(
        in_place_growth=True,
        growth_from_opening=True,
        stage1_from_opening=True,
        appends="full",
        stage2_late=1,
        dropped=1,
    ),
}


def check_miga(s: MigaSettings, backbone: Backbone, length: int | None) -> None:
    """Check MIGA's settings for a backbone.

    Raises:
        UserError: A rule is broken; the message names it.
    """
    check_common(s, length)
    window, clean = backbone.window, backbone.schedule(s.steps).clean
    require(
        1 <= s.zigzag <= window,
        f"zigzag is {s.zigzag}: it must be from 1 to the window's {window} latents of {backbone.name}",
    )
    require(
        1 <= s.stride <= window,
        f"stride is {s.stride}: it must be from 1 to the window's {window} latents",
    )
    require(
        0 <= s.guidance_frames <= window - s.stride,
        f"guidance_frames is {s.guidance_frames}: with stride {s.stride} a window of {window} latents "
        f"leaves room for 0 to {window - s.stride}",
    )
    require(
        backbone.can_cut or not s.guidance_cut,
        f"guidance_cut works only with VideoCrafter2 in PyTorch, not with {backbone.name}: leave it out",
    )
    opening = window // s.zigzag
    room = s.steps - opening - clean - 1
    require(
        room >= 0,
        f"steps is {s.steps}: with zigzag {s.zigzag} it must be at least {opening + clean + 1}",
    )
    require(
        0 <= s.stage2_steps <= room,
        f"stage2_steps is {s.stage2_steps}: with {s.steps} steps and zigzag {s.zigzag} it must be from "
        f"0 to {room}",
    )
    require(
        0 <= s.renoise <= s.steps - clean,
        f"renoise is {s.renoise}: it must be from 0 to {s.steps - clean} steps",
    )
    late = RELEASED[backbone.family].stage2_late if s.released else 0
    require(
        s.renoise > 0 or s.stage2_steps == 0 or not late,
        f"renoise is 0 with released=true: stage 2 as released ends {late} level above clean on Wan,"
        " and only the re-noise pass finishes its latents; set renoise to 1 or more, or released=false",
    )
    if s.reflection == "off":
        return
    # A chunk is judged from where one more than the reference stands before it. Growth ends with the front so
    # far above the exit, and must judge twice before that: the first time only records.
    above = GROWTH_ENDS + 2 if s.reflection == "growth" else 1
    lowest = clean + s.stage2_steps + s.reference_chunks + above
    require(
        s.reference_chunks >= 1, f"reference_chunks is {s.reference_chunks}: it must be at least 1"
    )
    require(s.candidates >= 1, f"candidates is {s.candidates}: a search needs at least 1")
    require(
        math.isfinite(s.reflection_threshold),
        f"reflection_threshold is {s.reflection_threshold}: it must be a finite number",
    )
    require(
        lowest <= s.reflection_level <= s.steps - 1,
        f"reflection_level is {s.reflection_level}: with {s.steps} steps, {s.stage2_steps} of them in stage 2,"
        f" {s.reference_chunks} reference chunks and reflection {s.reflection} it must be from {lowest} to "
        f"{s.steps - 1}",
    )
    # a search begins with the reference and the chunk it draws, which may be less than a window
    shortest = min(window, (s.reference_chunks + 1) * s.zigzag)
    taken = backbone.latents_taken()
    require(
        taken is None or (shortest in taken and window in taken),
        f"reflection searches in rows of {shortest} to {window} latents, and this denoiser of {backbone.name}"
        f" takes {_told(taken)}: export it for them (frames are free by default), or set reflection=off",
    )


def _told(taken: range | None) -> str:
    return (
        "any"
        if taken is None
        else f"{taken[0]} to {taken[-1]}"
        if len(taken) > 1
        else f"{taken[0]} alone"
    )


class Miga(Sampler[MigaSettings]):
    """MIGA; endless."""

    name = "miga"

    def without_search(self) -> Miga:
        """Return MIGA with a threshold that no drop exceeds: similarities are in ``[-1, 1]``."""
        threshold = max(self.settings.reflection_threshold, 2.0)
        return Miga(dataclasses.replace(self.settings, reflection_threshold=threshold))

    def stream(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int | None = None,
        callback: PassCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield finished latents; see ``Sampler.stream``."""
        s = self.settings
        opening = s.opening_reading(backbone) if s.released else None
        backbone = s.reading(backbone)
        check_miga(s, backbone, length)
        denoiser = WindowDenoiser.of(s, backbone, prompts, noise, callback, opening)
        cost = denoiser.cost
        denoiser.cut = s.guidance_cut
        for latent in _Video(s, backbone, denoiser, length).stream():
            cost.finished += 1
            yield latent
            if cost.finished == length:
                return


@dataclass
class _Video:
    """One video in the making: stage 1's queue, and stage 2 behind it."""

    settings: MigaSettings
    backbone: Backbone
    denoiser: WindowDenoiser
    length: int | None
    opening: Tensor = field(init=False)
    queue: Queue = field(init=False)
    clip: list[tuple[int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        s, schedule = self.settings, self.denoiser.schedule
        self.quirks = RELEASED[self.backbone.family] if s.released else Quirks()
        self.window = self.backbone.window
        self.exit_level = schedule.clean + s.stage2_steps
        self.opening_chunks = self.window // s.zigzag
        # Chunks to hand over to stage 2; None for an endless video.
        self.chunks: int | None = None
        if self.length is not None:
            made = self.length + self.quirks.dropped * self.window
            # stage 2 of a video shorter than a window takes a whole one all the same, as the model was trained
            finishes = s.stage2_steps > 0 or s.renoise > 0
            least = self.window if finishes and not s.released else 0
            self.chunks = math.ceil(max(made, least) / s.zigzag)
        own = weakref.proxy(self)  # a cycle would keep a video's latents until garbage is collected
        self.reflection = Reflection(
            denoiser=self.denoiser,
            fresh_chunk=lambda *of: own._growth_chunk(*of),
            level=s.reflection_level,
            reference=s.reference_chunks,
            zigzag=s.zigzag,
            window=self.window,
            stride=s.stride,
            threshold=s.reflection_threshold,
            candidates=s.candidates,
            pooling=self.quirks.pooling,
            shown=None if s.released else self.length,
        )
        first = self.exit_level + self.quirks.stage2_late
        self.pipeline = Pipeline(
            self.denoiser,
            PassPlan(
                self.window, s.stride, s.guidance_frames if s.guidance_reach == "anchor" else 0
            ),
            levels=range(first, first - s.stage2_steps, -1),
            renoise=range(schedule.clean + s.renoise, schedule.clean, -1),
            length=None if self.chunks is None else self.chunks * s.zigzag,
            # A new prompt's anchors come with its first clean latents: when windows run decides which see them.
            early=not (s.guidance_reach == "anchor" and self.denoiser.prompts.changes),
        )

    def stream(self) -> Iterator[Tensor]:
        """Yield clean latents as they leave the pipeline."""
        self._open()
        for chunk in self._stage_1():
            self.pipeline.push(chunk)
            yield from self._finished()

    def _finished(self) -> Iterator[Tensor]:
        for part in self.pipeline.advance():
            if self.denoiser.anchors is not None:
                self._reanchor(part)
            yield from part.latents

    def _reanchor(self, part: Queue) -> None:
        """Make a prompt's own anchors from the first window of clean latents made under it.

        Until that window is complete, its windows keep the anchors of the prompt before, so that a prompt of
        less than a window never has its own.
        """
        anchors, segment = self.denoiser.anchors, self.denoiser.prompts.segment
        assert anchors is not None
        for latent, frame in zip(part.latents, part.frames, strict=True):
            own = segment(frame)
            if own in anchors.sets:
                continue
            if self.clip and segment(self.clip[0][0]) != own:
                self.clip = []  # of a prompt that ended before its window was complete
            self.clip.append((frame, latent))
            if len(self.clip) == self.window:
                frames = [frame for frame, _ in self.clip]
                latents = torch.stack([latent for _, latent in self.clip])
                anchors.sets[own] = self._anchors_from(latents, frames)
                self.clip = []
        anchors.forget_before(segment(part.frames[-1]))

    def _open(self) -> None:
        """Make the opening clip, and seed queue and anchors with it."""
        s, d = self.settings, self.denoiser
        schedule, noise = d.schedule, d.noise
        self.opening = d.denoise_clip(self.window)
        # A chunk shares one level and leaves as one: what does not fill one stays out of the queue.
        frames = list(range(self.opening_chunks * s.zigzag))
        top = schedule.steps - self.opening_chunks
        levels = [top + frame // s.zigzag for frame in frames]
        kept = self.opening[: len(frames)]
        latents = schedule.add_noise(kept, levels, noise(frames, "seed"))
        self.queue = Queue.fresh(latents, levels, frames, d.solver)
        if s.guidance_frames and s.guidance_reach == "anchor":
            d.anchors = Anchors(level=schedule.clean + 1)
            d.anchors.sets[0] = self._anchors_from(self.opening, list(range(self.window)))

    def _anchors_from(self, clip: Tensor, frames: list[int]) -> Tensor:
        """Return evenly spaced latents of a clean clip, noised to one level above clean."""
        schedule = self.denoiser.schedule
        count = self.settings.guidance_frames
        chosen = torch.linspace(0, len(clip) - 1, count).round().long()
        numbers = [frames[k] for k in chosen.tolist()]
        level = schedule.clean + 1
        return schedule.add_noise(
            clip[chosen], [level] * count, self.denoiser.noise(numbers, "anchor")
        )

    def _chunk(self, frames: list[int], purpose: str, draw: int, from_opening: bool) -> Queue:
        """Return a chunk at the top level: pure noise, or the last opening latent under noise."""
        top = self.denoiser.schedule.steps
        latents = self.denoiser.noise(frames, purpose, draw)
        if from_opening:
            last = self.opening[-1:].expand_as(latents)
            latents = self.denoiser.schedule.add_noise(last, [top] * len(frames), latents)
        return Queue.fresh(latents, [top] * len(frames), frames, self.denoiser.solver)

    def _growth_chunk(self, frames: list[int], purpose: str, draw: int) -> Queue:
        return self._chunk(frames, purpose, draw, self.quirks.growth_from_opening)

    def _append(self, from_opening: bool) -> None:
        first = self.queue.frames[-1] + 1
        frames = list(range(first, first + self.settings.zigzag))
        self.queue = self.queue + self._chunk(frames, "queue", 0, from_opening)

    def _stage_1(self) -> Iterator[Queue]:
        """Yield chunks at the exit level, for ever or until there are enough."""
        s = self.settings
        number = grown = 0
        while self.chunks is None or grown < self.chunks:
            self._append(self.quirks.growth_from_opening)
            grown += 1
            if self.queue.levels[0] <= self.exit_level + GROWTH_ENDS:
                break
            ranges = growth_partition(len(self.queue), s.stride, self.window - s.guidance_frames)
            self._pass("growth", ranges, self.quirks.in_place_growth, number)
            number += 1
        index = given = 0
        while self.chunks is None or given < self.chunks:
            local = self.window - s.guidance_frames
            ranges = partition(len(self.queue), s.stride, local, index % s.stride)
            self._pass("stage1", ranges, self.quirks.in_place_stage1, number)
            index, number = index + 1, number + 1
            if self.queue.levels[0] == self.exit_level:
                given += 1
                yield self.queue.pop(s.zigzag)
            if self._needs_chunk(grown):
                self._append(self.quirks.stage1_from_opening)
                grown += 1

    def _needs_chunk(self, grown: int) -> bool:
        if self.quirks.appends == "needed":
            return self.chunks is None or grown < self.chunks
        below = self.denoiser.schedule.steps - self.queue.levels[-1]
        return below >= 1 if self.quirks.appends == "always" else below == 1

    def _pass(self, stage: str, ranges: list[range], in_place: bool, number: int) -> None:
        """Take the queue down one level, then judge its tail."""
        s = self.settings
        plan = miga_windows(
            ranges, len(self.queue), self.window, s.guidance_frames, s.zigzag, s.guidance_reach
        )
        self.denoiser.denoise(self.queue, plan, "stage 1 step", in_place)
        reflected = None
        if s.reflection == "continuous" or (s.reflection == "growth" and stage == "growth"):
            reflected = self.reflection(self.queue, number)
        self.denoiser.cost.report(stage, self.queue.levels, reflected)
