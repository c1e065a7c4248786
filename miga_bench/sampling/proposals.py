"""Where ScalingNoise's candidates come from (arXiv 2503.16400): noises that remember the last frame.

A candidate for the newest slot is made of fresh noise and of u, the slot before it, which stands one level
below the top and so is nearly noise itself. Four proposals are mixed, each as likely as the others; all have
variance 1 where u has. Everything is a function of injected standard normal draws: numbers in [0, 1] are
normal draws put through their distribution function, so that a video depends on nothing but its noise source.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from miga_bench.backbones.schedule import Schedule
from miga_bench.sampling.noise import NoiseSource

Proposal = Literal["noise", "renoise", "frequency", "tilted"]
KINDS: tuple[Proposal, ...] = get_args(Proposal)
CUTOFF = 0.25  # of the low-pass, in units of the highest frequency


def uniform(normal: Tensor) -> Tensor:
    """Turn standard normal draws into uniform ones in ``[0, 1]`` by the distribution function."""
    return torch.special.ndtr(normal)


def draw_uniform(noise: NoiseSource, frame: int, purpose: str, draw: int = 0) -> float:
    """Return one number in ``[0, 1]``, a pure function of the key."""
    # on the CPU: not every device has float64
    return float(uniform(noise([frame], purpose, draw)[0, 0, 0, 0].cpu().double()))


def renoised(before: Tensor, fresh: Tensor, schedule: Schedule) -> Tensor:
    """Take u to the top level by the forward process, ``alpha_T u + sigma_T eps``.

    For a variance-preserving schedule this is ``sqrt(a_T) u + sqrt(1 - a_T) eps``, for flow matching
    ``(1 - s_T) u + s_T eps``, where 1 - s_T is below 0.001, so that next to nothing of u stays.

    Args:
        before: u, ``[N, C, H, W]``.
        fresh: eps, standard normal, same shape.
        schedule: Gives alpha and sigma of its top level.
    """
    return schedule.add_noise(before, [schedule.steps] * len(before), fresh)


def frequency_mixed(before: Tensor, fresh: Tensor, released: bool = False) -> Tensor:
    """Keep u's low spatial frequencies and take the high ones from fresh noise, frame by frame.

    The low-pass is ``L(f) = exp(-|f|^2 / (2 * 0.25^2))`` with f from -1 to 1 along each side. The noise is
    weighted by ``sqrt(1 - L^2)``, which keeps the power of every frequency; the released ``1 - L`` loses up
    to half of it where the two meet.

    Args:
        before: u, ``[N, C, H, W]``.
        fresh: Standard normal, same shape.
        released: Weigh the noise as the released code does.
    """
    height, width = before.shape[-2:]
    rows = 2 * torch.fft.fftfreq(height, device=before.device)
    columns = 2 * torch.fft.rfftfreq(width, device=before.device)
    square = rows[:, None] ** 2 + columns[None, :] ** 2
    low = torch.exp(-square / (2 * CUTOFF**2))
    high = 1 - low if released else (1 - low**2).clamp(min=0).sqrt()
    mixed = torch.fft.rfft2(before) * low + torch.fft.rfft2(fresh) * high
    return torch.fft.irfft2(mixed, s=(height, width))


def tilted(remembered: Tensor, fresh: Tensor, share: Tensor) -> Tensor:
    """Mix element by element, ``((1 - s) w + s eps) / sqrt((1 - s)^2 + s^2)``: the tilted distribution.

    Args:
        remembered: w, renoised u, ``[N, C, H, W]``.
        fresh: eps, standard normal, same shape.
        share: s of every element, in ``[0, 1]``, same shape.
    """
    rest = 1 - share
    return (rest * remembered + share * fresh) / (rest**2 + share**2).sqrt()


def choose(noise: NoiseSource, frame: int, draw: int) -> Proposal:
    """Return one of the four proposals, uniformly, as a pure function of (frame, draw)."""
    place = int(len(KINDS) * draw_uniform(noise, frame, "proposal", draw))
    return KINDS[min(place, len(KINDS) - 1)]


def propose(
    kind: Proposal,
    before: Tensor,
    noise: NoiseSource,
    frame: int,
    draw: int,
    schedule: Schedule,
    released: bool = False,
) -> Tensor:
    """Return a latent ``[1, C, H, W]`` for the newest slot, at the top level.

    Args:
        kind: Which proposal; ``noise`` with draw 0 is the noise that FIFO would append.
        before: u, ``[1, C, H, W]``, the slot before it, one level below the top.
        noise: Source of all draws.
        frame: The new slot's frame number.
        draw: Number of the candidate, unique among all candidates for this frame.
        schedule: Of the queue.
        released: See ``frequency_mixed``.
    """
    fresh = noise([frame], "queue", draw)
    if kind == "noise":
        return fresh
    if kind == "renoise":
        return renoised(before, fresh, schedule)
    if kind == "frequency":
        return frequency_mixed(before, fresh, released)
    remembered = renoised(before, noise([frame], "proposal renoise", draw), schedule)
    return tilted(remembered, fresh, uniform(noise([frame], "proposal share", draw)))
