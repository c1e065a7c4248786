"""Which denoiser calls a video will take, found by walking its queue without the network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.base import (
    Backbone,
    Denoiser,
    FrameAttention,
    LatentShape,
    StreamingDecoder,
)
from miga_bench.backbones.schedule import Grid, Schedule
from miga_bench.backbones.solvers import FlowEuler, Solver
from miga_bench.sampling.base import PassReport, PromptSchedule, Sampler

BATCH = 64  # of a walk that is to be short; the count of windows does not depend on it


@dataclass(frozen=True)
class Call:
    """A kind of denoiser call.

    Attributes:
        rows: Windows in it, and the unconditional halves of those with guidance.
        frames: Latents of each.
        attention: What stands in for the network's attention over frames.
    """

    rows: int
    frames: int
    attention: FrameAttention | None = None


@dataclass
class Estimate:
    """What a video takes, searches left out.

    Attributes:
        team: Processes that make it together.
        windows: How many.
        calls: How many of each kind; their rows are the denoiser evaluations.
    """

    team: int = 1
    windows: int = 0
    calls: Counter[Call] = field(default_factory=Counter)

    @property
    def nfe(self) -> int:
        """Denoiser evaluations of the video."""
        return sum(call.rows * count for call, count in self.calls.items())

    @property
    def latents(self) -> int:
        """Latents that the denoiser sees, all evaluations together: about what a video costs.

        A whole-video method has few evaluations, each of all its latents.
        """
        return sum(call.rows * call.frames * count for call, count in self.calls.items())

    @property
    def shares(self) -> Counter[Call]:
        """The calls of the process with most to do; all of them where it is alone."""
        shares: Counter[Call] = Counter()
        for call, count in self.calls.items():
            shares[replace(call, rows=math.ceil(call.rows / self.team))] += count
        return shares


@dataclass(frozen=True)
class _Crew:
    """A team of so many processes, none of which is there."""

    size: int

    def split(self, denoiser: Denoiser) -> Denoiser:
        return denoiser

    def capacity(self, windows: int) -> int:
        return windows * self.size


class _Hollow(Backbone):
    """A backbone's geometry without its network: latents of one number, predictions of zero."""

    def __init__(self, backbone: Backbone, batch: int, team: int, calls: Counter[Call]) -> None:
        self.name, self.family, self.window = backbone.name, backbone.family, backbone.window
        self.latent_shape = LatentShape(1, 1, 1)
        self.frame_rate = backbone.frame_rate
        self.denoiser = self._count
        self.team = _Crew(team) if team > 1 else None
        self._real, self._batch, self._calls = backbone, batch, calls
        self._attention: FrameAttention | None = None

    def _count(self, latents: Tensor, timesteps: Tensor, text: Tensor, **_: Any) -> Tensor:
        self._calls[Call(latents.shape[0], latents.shape[2], self._attention)] += 1
        return torch.zeros_like(latents)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def decoder(self) -> StreamingDecoder:
        return self._real.decoder()

    def schedule(self, steps: int) -> Schedule:
        return self._real.schedule(steps)

    def solver(self, schedule: Schedule) -> Solver:
        return FlowEuler(schedule)

    def latents_for(self, frames: int) -> int:
        return self._real.latents_for(frames)

    def frames_of(self, latents: int) -> int:
        return self._real.frames_of(latents)

    def reading(
        self,
        grid: Grid | None = None,
        rescale: bool | None = None,
        fps: float | None = None,
    ) -> Backbone:
        real = self._real.reading(grid, rescale, fps)
        made = _Hollow(real, self._batch, self.team.size if self.team else 1, self._calls)
        made._attention = self._attention  # of the one network that all readings share
        return made

    def attending(self, attention: FrameAttention) -> AbstractContextManager[None]:
        self._real.attending(attention)  # never entered: only to hear of a refusal early
        return self._attended(attention)

    @contextmanager
    def _attended(self, attention: FrameAttention) -> Iterator[None]:
        self._attention = attention
        try:
            yield
        finally:
            self._attention = None

    @property
    def can_cut(self) -> bool:
        return self._real.can_cut

    @property
    def can_cache(self) -> bool:
        return self._real.can_cache

    def clip_bytes(self, frames: int, copies: float = 0.0) -> int | None:
        return self._real.clip_bytes(frames, copies)

    def free_bytes(self) -> int | None:
        return self._real.free_bytes()

    def default_batch(self) -> int:
        return self._batch

    @property
    def device(self) -> str:
        return "cpu"


def estimate_windows(
    sampler: Sampler[Any], backbone: Backbone, length: int | None, starts: tuple[int, ...] = (0,)
) -> int:
    """Return how many windows ``length`` latents take; see ``estimate``."""
    return estimate(sampler, backbone, length, BATCH, starts).windows


def estimate(
    sampler: Sampler[Any],
    backbone: Backbone,
    length: int | None,
    batch: int | None = None,
    starts: tuple[int, ...] = (0,),
    team: int = 1,
) -> Estimate:
    """Return what ``length`` latents take, searches left out.

    Args:
        sampler: The method, which is run on latents of one number.
        backbone: Gives the geometry.
        length: Latents to make; None is endless, where only what comes before the first latent is counted.
        batch: Windows in a call where the settings do not say; None is as many as the backbone chooses now.
        starts: Latent frames at which the video's prompts begin.
        team: Processes that make it together.

    Raises:
        UserError: A setting breaks a rule of the method, or it takes one prompt only.
    """
    found = Estimate(team)
    hollow = _Hollow(backbone, batch or backbone.default_batch(), team, found.calls)
    last: list[PassReport] = []

    def remember(report: PassReport) -> None:
        last[:] = [report]

    def no_noise(frames: Sequence[int], purpose: str, draws: Sequence[int] | int = 0) -> Tensor:
        return torch.zeros(len(frames), 1, 1, 1)

    prompts = PromptSchedule(torch.zeros(len(starts), 1, 1), torch.zeros(1, 1, 1), starts)
    for _ in sampler.without_search().stream(hollow, prompts, no_noise, length, remember):
        if length is None:
            break
    if last:  # a sampler that reports no pass is not known to take windows
        found.windows = last[0].windows
    return found
