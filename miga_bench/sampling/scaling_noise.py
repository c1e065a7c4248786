"""ScalingNoise (arXiv 2503.16400): a beam search over the noise of every frame that enters FIFO's queue.

m beams are FIFO queues with a history each. In a pass every beam draws k candidates for its newest slot
(``proposals.py``), each is denoised one step in the last window, and the clean frames this predicts are
scored against an anchor, the beam's last finished frame (``rewards.py``): a look ahead at what the noise
will become, not at what it is. The best m of the m k candidates are the next beams.

Beams that descend from the same beam share work. Every slot carries a mark, slots with equal marks are equal,
and a window that two beams read alike is denoised only once: since survivors are relatives, only the last few
windows are computed more than once. The same marks tell which latents are final: a latent is handed out when
all beams have it in their history. If they do not agree within ``lag`` latents, the beams that differ from
the best one are replaced by copies of it, so that an endless video needs no more memory than its queues.

The last bits of the scores depend on how many rows a denoiser call has. With another batch, or another number
of processes, a video is the same to float tolerance only as long as no choice is made between scores that
close to each other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.sampling.base import (
    CommonSettings,
    PassCallback,
    PromptSchedule,
    Reflected,
    Sampler,
)
from miga_bench.sampling.beams import Beam, agreed, best, select
from miga_bench.sampling.denoise import WindowDenoiser, Work
from miga_bench.sampling.fifo import check_fifo, seed_queue
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.proposals import Proposal, choose, draw_uniform, propose
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.rewards import Reward, RewardName, make_reward, need_reward
from miga_bench.sampling.rules import refuse_cache, require
from miga_bench.sampling.windows import Window, fifo_windows

# The choices are spelled out because settings are parsed by them.
ProposalName = Literal["mixture", Proposal]


@dataclass(frozen=True)
class ScalingNoiseSettings(CommonSettings):
    """Settings of ScalingNoise; ``steps`` is also the length of the queues, at least a window.

    Attributes:
        beams: m, queues that are kept.
        candidates: k, noises tried per beam and pass.
        greedy: Probability that a pass keeps the best m of all candidates; else the best of each beam.
        reward: What candidates are scored by; see ``rewards.py``.
        proposal: What candidates are drawn from: the ``mixture`` of the four, or one of them.
        lookahead: Whether a window writes only its noisier half, as in FIFO.
        lag: Latents that may wait for the beams to agree before the best beam decides.
        released: Follow the released code: the reward is the cosine of anchor and last frame (DINO's of
            pictures squashed to a square); all beams share one anchor, which each of them overwrites with the
            frame it has just finished, so that a beam is compared with the beam before it, and the first one
            with the last beam's frame of the pass before; a pass that is not greedy may give one beam's queue
            another one's newest slots, see ``select``; the first pass is without guidance; and see
            ``frequency_mixed``. Two things stay ours: beams share the solver's noise, which the release draws
            for each, and frame 0 is handed out, which the release drops as warm-up's last.
    """

    beams: int
    candidates: int
    greedy: float
    reward: RewardName
    proposal: ProposalName = "mixture"
    lookahead: bool = True
    lag: int = 16
    released: bool = False


def check_scaling_noise(s: ScalingNoiseSettings, backbone: Backbone, length: int | None) -> None:
    """Check ScalingNoise's settings for a backbone.

    Raises:
        UserError: A rule is broken; the message names it.
    """
    check_fifo(s, backbone, length)
    refuse_cache(s, "scaling-noise", "has several versions of the same frames in its beams")
    require(s.beams >= 1, f"beams is {s.beams}: at least 1 must be kept")
    require(s.candidates >= 1, f"candidates is {s.candidates}: each beam needs at least 1")
    require(0 <= s.greedy <= 1, f"greedy is {s.greedy}: it must be a probability, from 0 to 1")
    require(s.lag >= 0, f"lag is {s.lag}: it must be at least 0 latents")


Key = tuple[int, ...]  # first written slot of a window, marks of all slots it reads
Marked = tuple[Queue, tuple[int, ...]]  # slots and their marks


class ScalingNoise(Sampler[ScalingNoiseSettings]):
    """ScalingNoise; endless.

    Args:
        settings: The settings.
        reward: Scores candidates instead of the settings' own reward.
    """

    name = "scaling-noise"

    def __init__(self, settings: ScalingNoiseSettings, reward: Reward | None = None) -> None:
        super().__init__(settings)
        self.reward = reward

    def prepare(self) -> None:
        """Load the network of the settings' reward, if there is anything to choose by it."""
        s = self.settings
        if self.reward is None and s.beams * s.candidates > 1:
            need_reward(s.reward)

    def without_search(self) -> ScalingNoise:
        """Return FIFO: one beam, one candidate, nothing to score."""
        return ScalingNoise(dataclasses.replace(self.settings, beams=1, candidates=1))

    def stream(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int | None = None,
        callback: PassCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield finished latents; see ``Sampler.stream``.

        FIFO's warm-up applies. At the end of the video, the best beam decides what is not agreed upon. After
        a change of the text, candidates are compared with an anchor of the text before for as long as a frame
        takes through the queue.
        """
        s = self.settings
        opening = s.opening_reading(backbone) if s.released else None
        backbone = s.reading(backbone)
        check_scaling_noise(s, backbone, length)
        self.prepare()
        reward = self.reward or make_reward(s.reward, backbone, "last" if s.released else "all")
        denoiser = WindowDenoiser.of(s, backbone, prompts, noise, callback, opening)
        cost = denoiser.cost
        search = Search(s, backbone.window, denoiser, reward)
        while length is None or cost.finished < length:
            search.advance()
            cost.report("queue", range(s.steps), Reflected(search.similarity))
            for latent in search.final(None if length is None else length - cost.finished):
                cost.finished += 1
                yield latent


@dataclass
class Search:
    """The beams of one video.

    Args:
        settings: The sampler's.
        window: Latents of a window.
        denoiser: Denoises windows.
        reward: Scores candidates.

    Attributes:
        beams: The survivors of the last pass, as many as the settings say.
        similarity: The best survivor's score; None where there was nothing to choose.
        shared: As released, the one anchor ``[C, H, W]`` as the last pass left it; None before the first.
    """

    settings: ScalingNoiseSettings
    window: int
    denoiser: WindowDenoiser
    reward: Reward
    beams: list[Beam] = field(init=False)
    similarity: float | None = None
    shared: Tensor | None = None

    def __post_init__(self) -> None:
        self.context = self.window - self.window // 2 if self.settings.lookahead else 0
        queue = seed_queue(self.denoiser, self.window, self.context)
        *self.settled, last = fifo_windows(len(queue), self.window, self.context)
        # The last window alone holds the newest slot; it is read from a queue of its own.
        self.last = Window(tuple(range(self.window)), range(last.offset, self.window), last.offset)
        self._marks = itertools.count()
        # The first pass has its newest slot from the opening clip, and so nothing to search.
        self._seeded: Queue | None = queue[-1:]
        self.beams = [Beam(queue[:-1], self._fresh_marks(len(queue) - 1))]

    def advance(self) -> None:
        """Take all beams down one level, keep those with the best newest slots, shift their queues."""
        s, denoiser = self.settings, self.denoiser
        # The released loop calls its first pass without guidance.
        plain = s.released and self._seeded is not None
        denoiser.guidance_scale = 1.0 if plain else s.guidance_scale
        before = denoiser.cost.windows
        rows = self._candidates()
        works, needed = self._distinct()
        tails = [Work(row, [self.last], whole=True) for beam in rows for row in beam]
        predictions = denoiser.predict([*works.values(), *tails])
        spent = denoiser.cost.windows - before
        denoiser.cost.search_windows += spent - len(self.settled) - 1
        stepped = {
            key: self._step(work.queue, work.windows[0].writes, prediction)
            for (key, work), prediction in zip(works.items(), predictions, strict=False)
        }
        wholes = [list(part) for part in _batched(predictions[len(works) :], len(rows[0]))]
        written = self.last.writes
        anchors = [beam.anchor for beam in self.beams]
        if s.released:
            # With all in one window, the released loop leaves its last candidate in the queue.
            fronts = [
                stepped[keys[0]][0].latents[0]
                if keys
                else self._step(row[-1], written, whole[-1][written.start :])[0].latents[0]
                for keys, row, whole in zip(needed, rows, wholes, strict=True)
            ]
            anchors = [self.shared, *fronts[:-1]]
            self.shared = fronts[-1].clone()  # a view would keep the whole part
        scores = self._scores(rows, wholes, anchors)
        # Distinct for every pass: frame numbers rise by one.
        draw = draw_uniform(denoiser.noise, rows[0][0].frames[-1], "selection")
        chosen = select(scores, s.beams, draw < s.greedy, s.released)
        ends = {
            (t, c): self._step(rows[t][c], written, wholes[t][c][written.start :])
            for t, c in dict.fromkeys((t, c) for _, t, c in chosen)
        }
        self.beams = [
            self._next(b, [*(stepped[key] for key in needed[b]), ends[t, c]], float(scores[t, c]))
            for b, t, c in chosen
        ]
        self._seeded = None
        self.beams += [best(self.beams)] * (s.beams - len(self.beams))
        self.similarity = None if scores.numel() == 1 else best(self.beams).score

    def final(self, left: int | None) -> list[Tensor]:
        """Remove and return what is final; ``left`` latents are still to come, None without end."""
        latents, self.beams = agreed(self.beams, self.settings.lag, left)
        return latents

    def _fresh_marks(self, count: int) -> tuple[int, ...]:
        return tuple(itertools.islice(self._marks, count))

    def _candidates(self) -> list[list[Queue]]:
        """Return for each beam its last window with each of its candidates at the end."""
        width = self.settings.candidates
        rows = []
        for number, beam in enumerate(self.beams):
            read = beam.queue[len(beam.queue) + 1 - self.window :]
            if self._seeded is not None:
                newest = [self._seeded]
            else:
                newest = [self._propose(beam, number * width + c) for c in range(width)]
            rows.append([read + slot for slot in newest])
        return rows

    def _propose(self, beam: Beam, draw: int) -> Queue:
        """Return a candidate for a beam's newest slot."""
        s, d = self.settings, self.denoiser
        frame, before = beam.queue.frames[-1] + 1, beam.queue.latents[-1:]
        kind = choose(d.noise, frame, draw) if s.proposal == "mixture" else s.proposal
        latent = propose(kind, before, d.noise, frame, draw, d.schedule, s.released)
        return Queue.fresh(latent, [d.schedule.steps], [frame], d.solver)

    def _distinct(self) -> tuple[dict[Key, Work], list[list[Key]]]:
        """Return the windows to denoise before the last ones, and which of them each beam needs.

        What a window gives depends on nothing but what it reads, so beams that read the same share it.
        """
        works: dict[Key, Work] = {}
        needed = []
        for beam in self.beams:
            keys = []
            for window in self.settled:
                key = (window.writes.start, *(beam.marks[slot] for slot in window.reads))
                works.setdefault(key, Work(beam.queue, [window]))
                keys.append(key)
            needed.append(keys)
        return works, needed

    def _step(self, queue: Queue, writes: range, prediction: Tensor) -> Marked:
        """Take the slots that a window writes down one level; they get marks of their own."""
        slots = queue[writes.start : writes.stop]
        # The purpose is FIFO's: with one beam and one candidate this is FIFO.
        stepped = self.denoiser.step(slots, prediction, "fifo step")
        return stepped, self._fresh_marks(len(stepped))

    def _scores(
        self,
        rows: list[list[Queue]],
        predictions: list[list[Tensor]],
        anchors: Sequence[Tensor | None],
    ) -> Tensor:
        """Return the candidates' rewards ``[m, k]`` on the CPU; 0 where there is no choice.

        Args:
            rows: Each beam's last window with each of its candidates.
            predictions: For them.
            anchors: What each beam's are compared with, ``[C, H, W]``; none is needed without a choice.
        """
        if len(rows) * len(rows[0]) == 1:
            return torch.zeros(1, 1)
        clean = self.denoiser.solver.clean_prediction
        scores = []
        for anchor, queues, row in zip(anchors, rows, predictions, strict=True):
            ahead = [clean(q.latents, p, q.levels) for q, p in zip(queues, row, strict=True)]
            assert anchor is not None
            scores.append(self.reward(torch.stack(ahead), anchor).float().cpu())
        return torch.stack(scores)

    def _next(self, parent: int, parts: Sequence[Marked], score: float) -> Beam:
        """Return a survivor: its parent's context, the slots of this pass, its queue shifted."""
        beam = self.beams[parent]
        queue = Queue.join([beam.queue[: self.context], *(slots for slots, _ in parts)])
        marks = beam.marks[: self.context] + tuple(m for _, new in parts for m in new)
        front = self.context
        # A view would keep the whole queue of this pass.
        anchor = queue.latents[front].clone()
        waiting = beam.waiting
        if queue.frames[front] >= 0:  # else it belongs to the warm-up
            waiting += ((marks[front], anchor),)
        return Beam(queue[1:], marks[1:], waiting, anchor, score)


def _batched(items: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """Yield runs of ``size`` items."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
