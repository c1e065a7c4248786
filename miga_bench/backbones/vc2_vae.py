"""Streaming over VideoCrafter2's autoencoder: Stable Diffusion's, each frame on its own.

There is no state between frames; a session only bounds how many are at work at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from miga_bench.backbones.memory import PIXELS_AT_ONCE


def spatial_factor(vae: AutoencoderKL) -> int:
    """Return how many pixels wide one latent is."""
    config: Any = vae.config  # type: ignore[attr-defined]
    return int(2 ** (len(config.block_out_channels) - 1))


class _Session:
    """One half of the autoencoder at work on one video.

    Args:
        vae: The autoencoder; its weights are read, nothing of it is written.
        place: Called before each push and told to return where the module now is; an offloading
            backbone brings it to the GPU there. None leaves everything where it is.
    """

    def __init__(self, vae: AutoencoderKL, place: Callable[[], torch.device] | None = None) -> None:
        self._vae: Any = vae
        self._place = place
        self._side = spatial_factor(vae)

    def _arrive(self) -> tuple[torch.device, torch.dtype]:
        weight: Tensor = self._vae.quant_conv.weight
        device = self._place() if self._place is not None else weight.device
        return device, weight.dtype


class VideoCrafterStreamingDecoder(_Session):
    """Latents in, as many frames out."""

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            latents: ``[F, C, H, W]``, scaled as the denoiser makes them, in order.

        Returns:
            ``[F, 3, height, width]`` float32 in ``[0, 1]`` on the module's device.
        """
        height, width = (self._side * size for size in latents.shape[2:])
        if not latents.shape[0]:
            return torch.zeros(0, 3, height, width)
        device, dtype = self._arrive()
        z = latents.to(device, torch.float32) / self._vae.config.scaling_factor
        frames = [
            self._vae.decode(part.to(dtype), return_dict=False)[0].float().clamp(-1, 1)
            for part in z.split(max(1, PIXELS_AT_ONCE // (height * width)))
        ]
        return torch.cat(frames).mul(0.5).add(0.5)


class VideoCrafterStreamingEncoder(_Session):
    """Frames in, as many latents out."""

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Encode the next frames.

        Args:
            frames: ``[N, 3, height, width]`` in ``[0, 1]``, in order.

        Returns:
            ``[N, C, H, W]`` float32, the posterior's mean, scaled as the denoiser wants it.
        """
        height, width = frames.shape[2:]
        config = self._vae.config
        if not frames.shape[0]:
            size = (config.latent_channels, height // self._side, width // self._side)
            return torch.zeros(0, *size)
        device, dtype = self._arrive()
        x = frames.to(device, torch.float32).mul(2).sub(1).to(dtype)
        latents = [
            self._vae.encode(part, return_dict=False)[0].mode().float()
            for part in x.split(max(1, PIXELS_AT_ONCE // (height * width)))
        ]
        return torch.cat(latents) * config.scaling_factor
