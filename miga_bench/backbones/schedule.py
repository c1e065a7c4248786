"""Noise schedules as tables indexed by level (0 = clean, T = pure noise).

The forward process of both families is ``x_l = alpha_l x_0 + sigma_l eps``:

* flow matching (Wan): ``alpha = 1 - sigma``, ``sigma`` a shifted uniform grid;
* variance preserving (VideoCrafter2): ``alpha^2 + sigma^2 = 1`` on a grid of 1000 training steps,
  ``alpha`` optionally times the dynamic rescale ``s_t``.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from miga_bench.errors import UserError

# Of any other number n, range(0, 1000, 1000 // n) has more than n steps: VideoCrafter itself takes more than it
# is asked for, and the first n of them end short of the noise. The last of 1000 would lie past the end.
STOCK_STEPS = [n for n in range(2, 1000) if 1000 % n == 0]


# VideoCrafter2's training steps that levels stand at: evenly from 0 to 999, or as its own code takes them.
Grid = Literal["even", "stock"]


@dataclass(frozen=True)
class Schedule:
    """Tables of one noise schedule; every tensor is ``[T + 1]``, indexed by level.

    Attributes:
        steps: T, the number of levels above clean.
        timesteps: float32, what the denoiser is told at a level, in ``[0, 1000]``.
        alpha: float64, share of the clean latent at a level.
        sigma: float64, share of noise at a level.
        clean: The level at which sampling ends. It is 0, but 1 on VideoCrafter2's grid, where the
            last step (training step 0 to training step 0) changes nothing.
    """

    steps: int
    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    clean: int = 0

    def add_noise(self, clean: Tensor, levels: Sequence[int], noise: Tensor) -> Tensor:
        """Take clean latents ``[F, C, H, W]`` to their levels by the forward process."""
        index = torch.as_tensor(levels)
        alpha = self.alpha[index].to(clean.device, clean.dtype)[:, None, None, None]
        sigma = self.sigma[index].to(clean.device, clean.dtype)[:, None, None, None]
        return alpha * clean + sigma * noise


def flow_schedule(steps: int, shift: float) -> Schedule:
    """Return Wan2.1's flow-matching grid.

    A uniform grid from 0.999 down to 0, without its last point, is shifted by
    ``s' = shift s / (1 + (shift - 1) s)``; the model is told the whole number of ``1000 s'``.

    Args:
        steps: T, at least 1.
        shift: Timestep shift, 1 leaves the grid uniform.
    """
    uniform = torch.linspace(0.999, 0, steps + 1, dtype=torch.float64)[:-1]
    shifted = shift * uniform / (1 + (shift - 1) * uniform)
    # The released code rounds the grid to float32 before anything is computed from it.
    sigma = torch.cat([shifted.float(), torch.zeros(1)]).flip(0).double()
    timesteps = (sigma * 1000).long().float()
    return Schedule(steps=steps, timesteps=timesteps, alpha=1 - sigma, sigma=sigma)


def ddpm_schedule(
    steps: int,
    grid: Grid = "even",
    rescale: bool = False,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
) -> Schedule:
    """Return VideoCrafter2's variance-preserving grid over its 1000 training steps.

    Args:
        steps: T, from 2 to 1000.
        grid: ``even`` spaces T whole numbers evenly over 0 to 999, ends included, as FIFO-Diffusion
            and MIGA do; ``stock`` counts 1, 1 + 1000 / T, ... as VideoCrafter itself does, for a T below
            1000 that divides it.
        rescale: Whether clean latents shrink to 0.7 over the first 400 training steps, as the
            network was trained; FIFO's and MIGA's queues leave it out.
        beta_start: First variance of the scaled-linear schedule.
        beta_end: Last variance of the scaled-linear schedule.

    Raises:
        UserError: The stock grid has no such number of steps.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    if grid == "even":
        training_steps = torch.linspace(0, 999, steps, dtype=torch.float64).round().long()
    else:
        if steps not in STOCK_STEPS:
            place = bisect(STOCK_STEPS, steps)
            near = " or ".join(map(str, STOCK_STEPS[max(place - 1, 0) : place + 1]))
            raise UserError(
                f"steps is {steps}: grid=stock needs a number of steps that divides 1000; use {near}, or"
                " grid=even"
            )
        training_steps = torch.arange(0, 1000, 1000 // steps) + 1
    scale = torch.cat([torch.linspace(1, 0.7, 400), torch.full((600,), 0.7)]).double()
    alpha = alpha_bar.sqrt() * (scale if rescale else 1.0)
    sigma = (1 - alpha_bar).sqrt()
    # Level l stands at training step number l - 1 of the grid; level 0 at the very first, where the even
    # grid's level 1 stands, too.
    at_level = torch.cat([torch.zeros(1, dtype=torch.long), training_steps])
    return Schedule(
        steps=steps,
        timesteps=at_level.float(),
        alpha=alpha[at_level],
        sigma=sigma[at_level],
        clean=1 if grid == "even" else 0,
    )
