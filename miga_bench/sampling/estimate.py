"""How many windows a video will take, by walking its queue with nothing in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone, FrameAttention, LatentShape, StreamingDecoder
from miga_bench.sampling.base import PassReport, PromptSchedule, Sampler
from miga_bench.sampling.schedule import Schedule
from miga_bench.sampling.solvers import FlowEuler, Solver


class _Hollow(Backbone):
    """A backbone's geometry without its network: latents of one number, predictions of zero."""

    def __init__(self, backbone: Backbone) -> None:
        self.name, self.family, self.window = backbone.name, backbone.family, backbone.window
        self.latent_shape = LatentShape(1, 1, 1)
        self.frame_rate = backbone.frame_rate
        self.denoiser = lambda latents, timesteps, text, **_: torch.zeros_like(latents)
        self._real = backbone

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
        grid: Literal["even", "stock"] | None = None,
        rescale: bool | None = None,
        fps: float | None = None,
    ) -> Backbone:
        return _Hollow(self._real.reading(grid, rescale, fps))

    def attending(self, attention: FrameAttention) -> AbstractContextManager[None]:
        self._real.attending(attention)  # never entered: only to hear of a refusal early
        return nullcontext()

    @property
    def can_cut(self) -> bool:
        return self._real.can_cut

    def clip_bytes(self, frames: int, copies: float = 0.0) -> int | None:
        return self._real.clip_bytes(frames, copies)

    def free_bytes(self) -> int | None:
        return self._real.free_bytes()

    def default_batch(self) -> int:
        return 64

    @property
    def device(self) -> str:
        return "cpu"


def estimate_windows(sampler: Sampler[Any], backbone: Backbone, length: int) -> int:
    """Return how many windows ``length`` latents take, searches left out.

    The sampler itself is run on latents of one number, so the count is its own.

    Raises:
        UserError: A setting breaks a rule of the method.
    """
    hollow = _Hollow(backbone)
    last: list[PassReport] = []

    def remember(report: PassReport) -> None:
        last[:] = [report]

    def no_noise(frames: Sequence[int], purpose: str, draws: Sequence[int] | int = 0) -> Tensor:
        return torch.zeros(len(frames), 1, 1, 1)

    prompts = PromptSchedule(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    for _ in sampler.without_search().stream(hollow, prompts, no_noise, length, remember):
        pass
    return last[0].windows - last[0].search_windows
