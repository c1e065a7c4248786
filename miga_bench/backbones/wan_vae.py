"""Streaming sessions over Wan's causal video autoencoder.

diffusers' ``AutoencoderKLWan.decode`` keeps its convolutions' past frames in the module and clears
them at both ends of a call, so a video decoded in two calls loses three frames and shows a seam.
A session here owns that past: one per video, any number over one module, the module untouched.

The first latent makes one frame, every later one ``temporal_factor`` (4) frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor


def spatial_factor(vae: AutoencoderKLWan) -> int:
    """Return how many pixels wide one latent is."""
    return int(2 ** (len(_config(vae).dim_mult) - 1))


def temporal_factor(vae: AutoencoderKLWan) -> int:
    """Return how many frames every latent after the first stands for."""
    return int(2 ** sum(_config(vae).temperal_downsample))


def latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the latents, each ``[C, 1, 1, 1]`` float32 on the CPU."""
    mean, std = (torch.tensor(v) for v in (_config(vae).latents_mean, _config(vae).latents_std))
    return mean.float()[:, None, None, None], std.float()[:, None, None, None]


def _config(vae: AutoencoderKLWan) -> Any:
    return vae.config  # type: ignore[attr-defined]


class _Session:
    """The past of one video in one half of the autoencoder.

    Args:
        vae: The autoencoder; its weights are read, nothing of it is written.
        half: ``decoder`` or ``encoder``.
        place: Called before each push and told to return where the module now is; an offloading
            backbone brings it to the GPU there. None leaves everything where it is.
        keep_on: Where the past waits between pushes, None for the device of the module. At
            480x832 it is 3.5 GiB in float32, whatever the length of the video.

    Attributes:
        past: What each convolution remembers; nothing, a word or frames, as diffusers has it.
        pushed: Latents, or groups of frames, so far.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        half: str,
        place: Callable[[], torch.device] | None,
        keep_on: torch.device | None,
    ) -> None:
        self._vae: Any = vae
        self._network: Any = getattr(vae, half)
        # diffusers' layers count themselves through this list; None is "nothing before".
        slots = sum(isinstance(layer, WanCausalConv3d) for layer in self._network.modules())
        self.past: list[Any] = [None] * slots
        self._place = place
        self._keep_on = keep_on
        self._mean, self._std = latent_statistics(vae)
        self.pushed = 0

    def _arrive(self) -> tuple[torch.device, torch.dtype]:
        weight: Tensor = self._vae.quant_conv.weight
        device = self._place() if self._place is not None else weight.device
        self._move(device)
        return device, weight.dtype

    def _leave(self) -> None:
        if self._keep_on is not None:
            self._move(self._keep_on)

    def _move(self, device: torch.device) -> None:
        self.past = [v.to(device) if isinstance(v, Tensor) else v for v in self.past]


class WanStreamingDecoder(_Session):
    """Latents in, frames out, as if the whole video had been decoded at once.

    ``push`` in any portions gives bit for bit what ``vae.decode`` gives for all latents together.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        place: Callable[[], torch.device] | None = None,
        keep_on: torch.device | None = None,
    ) -> None:
        super().__init__(vae, "decoder", place, keep_on)

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            latents: ``[F, C, H, W]``, normalized as the denoiser makes them, in order.

        Returns:
            ``[N, 3, height, width]`` float32 in ``[0, 1]`` on the module's device, with 1 frame for
            the first latent of the video and 4 for every later one.
        """
        if not latents.shape[0]:
            side = spatial_factor(self._vae)
            return torch.zeros(0, 3, latents.shape[2] * side, latents.shape[3] * side)
        device, dtype = self._arrive()
        z = latents.to(device, torch.float32).transpose(0, 1)
        z = (z * self._std.to(device) + self._mean.to(device)).to(dtype)
        frames = []
        for latent in z.split(1, dim=1):
            hidden = self._vae.post_quant_conv(latent[None])
            out = self._network(
                hidden, feat_cache=self.past, feat_idx=[0], first_chunk=self.pushed == 0
            )
            frames.append(out[0].clamp(-1, 1))
            self.pushed += 1
        self._leave()
        return torch.cat(frames, dim=1).transpose(0, 1).float().mul(0.5).add(0.5)


class WanStreamingEncoder(_Session):
    """Frames in, latents out, as if the whole video had been encoded at once.

    Frames that do not fill a group yet wait for the next push.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        place: Callable[[], torch.device] | None = None,
        keep_on: torch.device | None = None,
    ) -> None:
        super().__init__(vae, "encoder", place, keep_on)
        self._group = temporal_factor(vae)
        self._waiting: Tensor | None = None

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Encode the next frames.

        Args:
            frames: ``[N, 3, height, width]`` in ``[0, 1]``, in order.

        Returns:
            ``[F, C, H, W]`` float32, the posterior's mean, normalized as the denoiser wants it: one
            latent for the first frame of the video and one for each 4 after it.
        """
        device, dtype = self._arrive()
        x = frames.to(device, torch.float32).mul(2).sub(1)
        if self._waiting is not None:
            x = torch.cat([self._waiting.to(device), x])
        latents = []
        while x.shape[0] >= (need := self._group if self.pushed else 1):
            group = x[:need].transpose(0, 1)[None].to(dtype)
            hidden = self._network(group, feat_cache=self.past, feat_idx=[0])
            mean = self._vae.quant_conv(hidden).chunk(2, dim=1)[0][0].float()
            latents.append((mean - self._mean.to(device)) / self._std.to(device))
            self.pushed += 1
            x = x[need:]
        self._waiting = x.clone() if x.shape[0] else None
        self._leave()
        if not latents:
            side = spatial_factor(self._vae)
            return torch.zeros(
                0, self._std.shape[0], frames.shape[2] // side, frames.shape[3] // side
            )
        return torch.cat(latents, dim=1).transpose(0, 1)
