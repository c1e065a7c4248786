"""The known denoiser, noise pattern and backbones of tests/golden (see its README)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone, LatentShape, StreamingDecoder
from miga_bench.backbones.schedule import Schedule, ddpm_schedule, flow_schedule
from miga_bench.backbones.solvers import DDIM, Solver, UniPC
from miga_bench.sampling.base import PromptSchedule

PROMPTS = PromptSchedule(torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), -0.1))


class PatternNoise:
    """Every draw is the same pattern."""

    def __init__(self) -> None:
        c, y, x = torch.meshgrid(*(torch.arange(n).double() for n in (3, 4, 4)), indexing="ij")
        self.pattern = torch.sin(1.7 * c + 2.3 * y + 0.9 * x + 0.5).float()

    def __call__(
        self, frames: Sequence[int], purpose: str, draws: Sequence[int] | int = 0
    ) -> Tensor:
        return self.pattern.expand(len(frames), *self.pattern.shape).clone()


class AnalyticDenoiser:
    """The denoiser of the golden runs; counts its evaluations."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.calls = 0
        self.batches: list[int] = []

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        self.calls += len(latents)
        self.batches.append(len(latents))
        x = latents.double()
        before = torch.cat([x[:, :, :1], x[:, :, :-1]], 2)
        after = torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)
        s = (timesteps.double() / 1000)[:, None, :, None, None]
        c = text.double().reshape(-1, 1, 1, 1, 1)
        place = torch.arange(x.shape[2]).double()[None, None, :, None, None]
        near = 0.7 * x + 0.15 * before + 0.15 * after
        wave = 0.12 * torch.sin(1.3 * place + 4 * s)
        mean = x.mean(2, keepdim=True)
        if self.family == "wan":
            out = (2 * s - 1) / (s**2 + (1 - s) ** 2) * near + wave
            out += 0.3 * c * torch.cos(2 * x + place) + 0.1 * s * (x - mean)
        else:
            g = torch.abs(torch.sin(1.45 * s))
            out = g * near + wave + 0.15 * c * torch.cos(2 * x + place) + 0.1 * g * (x - mean)
        return out.float()


class AnalyticBackbone(Backbone):
    """A family's schedule and solver around the analytic denoiser."""

    def __init__(self, family: str, window: int | None = None) -> None:
        self.name = f"analytic-{family}"
        self.family = family
        self.window = window or (21 if family == "wan" else 16)
        self.latent_shape = LatentShape(3, 4, 4)
        self.frame_rate = 16.0
        self.denoiser = AnalyticDenoiser(family)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts), 1, 1), 0.2)

    def decoder(self) -> StreamingDecoder:
        raise NotImplementedError

    def schedule(self, steps: int) -> Schedule:
        return flow_schedule(steps, 5.0) if self.family == "wan" else ddpm_schedule(steps)

    def solver(self, schedule: Schedule) -> Solver:
        return UniPC(schedule) if self.family == "wan" else DDIM(schedule)

    @property
    def device(self) -> str:
        return "cpu"
