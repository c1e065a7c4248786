"""Frames as VBench's networks want them: resized, cropped and normalized, without torchvision.

The original applies torchvision's ``Resize(antialias=False)`` to floats in 0..255 and divides
afterwards, so what bicubic interpolation overshoots is kept; ``interpolate`` does the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Mode = Literal["bilinear", "bicubic"]
Moments = tuple[tuple[float, float, float], tuple[float, float, float]]


def short_side(frames: Tensor, size: int, mode: Mode, antialias: bool = False) -> Tensor:
    """Resize frames ``[N, 3, H, W]`` so that the shorter side is ``size``.

    Returns:
        float32 ``[N, 3, h, w]`` in about 0..255; the longer side is rounded down.
    """
    height, width = frames.shape[-2:]
    longer = int(size * max(height, width) / min(height, width))
    shape = (size, longer) if height <= width else (longer, size)
    return resize(frames, shape, mode, antialias)


def resize(frames: Tensor, shape: tuple[int, int], mode: Mode, antialias: bool = False) -> Tensor:
    """Resize frames ``[N, 3, H, W]`` to ``shape``; float32."""
    frames = frames.float()
    if tuple(frames.shape[-2:]) == shape:
        return frames
    return nn.functional.interpolate(
        frames, shape, mode=mode, align_corners=False, antialias=antialias
    )


def center_crop(frames: Tensor, size: int) -> Tensor:
    """Return the middle ``size`` x ``size`` pixels; a half pixel goes where ``round`` puts it."""
    height, width = frames.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return frames[..., top : top + size, left : left + size]


def normalize(frames: Tensor, moments: Moments) -> Tensor:
    """Turn pixels in 0..255 into what a network was trained on.

    Args:
        frames: float32 ``[N, 3, H, W]``.
        moments: Mean and standard deviation of the channels, of pixels in 0..1.
    """
    mean, std = (torch.tensor(m, device=frames.device).reshape(3, 1, 1) for m in moments)
    return frames.div(255).sub_(mean).div_(std)


def clip_pixels(frames: Tensor, size: int = 224) -> Tensor:
    """Preprocess frames ``[N, 3, H, W]`` in 0..255 for the middle square CLIP's towers see."""
    return normalize(center_crop(short_side(frames, size, "bicubic"), size), CLIP)
