"""Noise as a pure function of (seed, frame, purpose, draw).

A video must not depend on batch, rank, streaming, resumption or on what else was drawn, so there is
no running random state: every latent's noise is drawn from a CPU generator seeded by the hash of its
own key (the seed-per-item idea of k-diffusion's BatchedBrownianTree, per frame).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from miga_bench.backbones.base import LatentShape


class NoiseSource(Protocol):
    """Standard normal noise by key; injectable, so that tests may fix the pattern."""

    def __call__(
        self, frames: Sequence[int], purpose: str, draws: Sequence[int] | int = 0
    ) -> Tensor:
        """Return ``[len(frames), C, H, W]`` float32 noise.

        Args:
            frames: Frame numbers of the latents, negative ones for warm-up frames.
            purpose: What the noise is for, so that two uses never share a draw.
            draws: Which draw of that purpose, one for all frames or one per frame.
        """
        ...


class CounterNoise:
    """The default noise: each latent is drawn by a CPU generator seeded with its key's hash.

    Args:
        seed: The video's seed.
        shape: Channels, height and width of one latent.
        device: Where to put the noise; the draw itself is always made on the CPU.
    """

    def __init__(self, seed: int, shape: LatentShape, device: str = "cpu") -> None:
        self.seed = seed
        self.shape = shape
        self.device = device

    def __call__(
        self, frames: Sequence[int], purpose: str, draws: Sequence[int] | int = 0
    ) -> Tensor:
        """Return ``[len(frames), C, H, W]`` float32 noise for the keys."""
        numbers = [draws] * len(frames) if isinstance(draws, int) else draws
        # whatever type and device the program has as its defaults
        out = torch.empty(len(frames), *self.shape, dtype=torch.float32, device="cpu")
        for row, frame, draw in zip(out, frames, numbers, strict=True):
            key = f"{self.seed}/{frame}/{purpose}/{draw}".encode()
            seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
            row.normal_(generator=torch.Generator().manual_seed(seed))
        return out.to(self.device)
