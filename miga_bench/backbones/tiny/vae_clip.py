"""Encode and decode a whole clip at once, for training.

`AutoencoderKLWan` works through a clip in pieces of four frames with a cache of past features. That
is right for long videos and slow for training: many small convolutions that no compiler can fuse.
Its layers are causal with zeros before the first frame, so a clip can go through each layer in one
piece with the same result. Only the two temporal resampling layers treat the first frame specially;
they are the ones written out here. `tests/test_tiny_models.py` holds both ways equal.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn


def use_whole_clips(vae: nn.Module) -> nn.Module:
    """Let ``vae.encoder`` and ``vae.decoder`` take whole clips when called without a cache.

    The module's own ``encode`` and ``decode`` go on working piece by piece.

    Args:
        vae: An `AutoencoderKLWan`; changed in place.

    Returns:
        The same module.
    """
    for module in vae.modules():
        if getattr(module, "mode", None) in ("upsample3d", "downsample3d"):
            module.forward = functools.partial(_resample, module)
    return vae


def encode_clip(vae: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, z, 1 + (F-1)/4, H/8, W/8] of frames [B, 3, F, H, W] in [-1, 1]."""
    mean, log_variance = vae.quant_conv(vae.encoder(frames)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_clip(vae: Any, latents: Tensor) -> Tensor:
    """Frames [B, 3, F, H, W], about [-1, 1] and not clamped, of latents [B, z, f, H/8, W/8]."""
    frames: Tensor = vae.decoder(vae.post_quant_conv(latents))
    return frames


def _resample(self: Any, x: Tensor, feat_cache: Any = None, feat_idx: Any = (0,)) -> Tensor:
    if feat_cache is not None:
        cached: Tensor = type(self).forward(self, x, feat_cache=feat_cache, feat_idx=feat_idx)
        return cached
    if self.mode == "upsample3d" and x.shape[2] > 1:
        batch, channels, _, height, width = x.shape
        pairs = self.time_conv(x[:, :, 1:]).view(batch, 2, channels, -1, height, width)
        doubled = torch.stack((pairs[:, 0], pairs[:, 1]), 3).flatten(2, 3)
        x = torch.cat([x[:, :, :1], doubled], 2)
    frames = x.shape[2]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x
