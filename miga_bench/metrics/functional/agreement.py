"""Overall consistency: how well a video agrees with its prompt.

VBench (Huang et al., CVPR 2024), section 3.2: the cosine between a video's and a text's embedding by
ViCLIP, which sees the middle frames of 8 equal stretches of the video.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRETCHES = 8


def middle_frames(frames: int) -> list[int]:
    """Return the 8 frames of a video that are looked at; the last is repeated in shorter ones.

    Example:
        >>> middle_frames(16), middle_frames(3)
        ([0, 2, 4, 6, 8, 10, 12, 14], [0, 1, 2, 2, 2, 2, 2, 2])
    """
    stretches = min(STRETCHES, frames)
    # as numpy.linspace(0, frames, stretches + 1).astype(int) has them
    edges = [int(i * (frames / stretches)) for i in range(stretches)] + [frames]
    middles = [(edges[i] + edges[i + 1] - 1) // 2 for i in range(stretches)]
    return middles + middles[-1:] * (STRETCHES - stretches)


def text_agreement(video: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of two vectors ``[D]``; a scalar in [-1, 1].

    Example:
        >>> import torch
        >>> text_agreement(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor(0.6000)
    """
    return torch.dot(video / video.norm(), text / text.norm())
