"""Temporal flickering: VBench's mean absolute difference of successive frames.

VBench (Huang et al., CVPR 2024), section 3.2, with pixels in 0..255::

    m_t = mean |x_t - x_{t+1}|,    s = (255 - mean of m_t) / 255
"""

from __future__ import annotations

import torch
from torch import Tensor


def _flickering_update(frames: Tensor, newest: Tensor | None) -> Tensor:
    """Return the mean absolute differences ``[n]``, float64, that uint8 frames complete.

    Args:
        frames: uint8 ``[T, 3, H, W]``.
        newest: The frame ``[3, H, W]`` before them; None at the start of a video.
    """
    if newest is not None:
        frames = torch.cat([newest[None], frames])
    return absolute_difference(frames[1:], frames[:-1])


def absolute_difference(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean absolute difference ``[N]``, float64, of uint8 frames ``[N, 3, H, W]``.

    Summed in whole numbers, so exact: no order of pixels or frames changes it.
    """
    pixels = first[0].numel() if len(first) else 1
    # max - min stays within uint8, where a difference would not
    off = torch.maximum(first, second) - torch.minimum(first, second)
    return off.flatten(1).sum(1, dtype=torch.int64).double() / pixels


def temporal_flickering(video: Tensor) -> Tensor:
    """Return how little successive frames differ.

    Args:
        video: uint8 ``[T, 3, H, W]``, T >= 2.

    Returns:
        A float64 scalar in [0, 1]; 1 for a still video.

    Example:
        >>> import torch
        >>> video = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
        >>> video[1] = 51
        >>> temporal_flickering(video)
        tensor(0.8000, dtype=torch.float64)
    """
    return (255 - _flickering_update(video, None).mean()) / 255
