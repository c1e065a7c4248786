"""Dynamic degree: whether enough of a video's frames move.

VBench (Huang et al., CVPR 2024), section 3.2, as its code has it. Of the frames at about 8 per second,
n of them, every pair's motion is the mean length of the longest 5 % of its flow vectors. With the
shorter side of the frames a, a pair moves if its motion exceeds 6 a / 256; the video is dynamic if at
least round(n / 4) pairs move, and there is a pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from miga_bench.metrics.networks.base import check_finite

Flow = Callable[[Tensor, Tensor], Tensor]
MULTIPLE = 8  # sides are padded to multiples of it


def stride(fps: float) -> int:
    """Return how many frames a step is, so that there are about 8 in a second."""
    return max(1, round(fps / 8))


def pair_motion(first: Tensor, second: Tensor, flow: Flow) -> Tensor:
    """Return the motion ``[N]`` of pairs of uint8 frames ``[N, 3, H, W]``, in pixels.

    Frames are padded to sides of multiples of 8, and the flow there counts, as in the original.

    Raises:
        NumericalError: The flow is NaN or infinity somewhere.
    """
    height, width = first.shape[-2:]
    down, right = -height % MULTIPLE, -width % MULTIPLE
    pads = (right // 2, right - right // 2, down // 2, down - down // 2)
    padded = (nn.functional.pad(f.float(), pads, mode="replicate").byte() for f in (first, second))
    length = check_finite(flow(*padded)).float().square().sum(1).sqrt().flatten(1)
    return length.topk(int(length.shape[1] * 0.05), dim=1).values.mean(1)


def threshold(height: int, width: int) -> float:
    """Return the motion, in pixels, above which a pair moves."""
    return 6.0 * (min(height, width) / 256.0)


def is_dynamic(moving: int, frames: int) -> bool:
    """Return whether ``moving`` pairs of ``frames`` frames are enough."""
    return frames > 1 and moving >= round(4 * (frames / 16.0))


def dynamic_degree(video: Tensor, fps: float, flow: Flow) -> Tensor:
    """Return 1 if enough of a video moves, else 0.

    Args:
        video: uint8 ``[T, 3, H, W]``, of a size that ``flow`` takes.
        fps: Frames per second it is played at.
        flow: Takes two batches of uint8 frames, returns displacements in pixels ``[N, 2, H, W]``.

    Returns:
        A float64 scalar.

    Raises:
        NumericalError: A flow is NaN or infinity somewhere.

    Example:
        >>> import torch
        >>> video = torch.zeros(9, 3, 64, 64, dtype=torch.uint8)
        >>> dynamic_degree(video, 8.0, lambda a, b: torch.full((len(a), 2, 64, 64), 2.0))
        tensor(1., dtype=torch.float64)
    """
    frames = video[:: stride(fps)]
    pairs = zip(frames[:-1].split(1), frames[1:].split(1), strict=True)
    limit = threshold(*video.shape[-2:])
    moving = sum(pair_motion(a, b, flow).item() > limit for a, b in pairs)
    return torch.tensor(float(is_dynamic(moving, len(frames))), dtype=torch.float64)
