"""Motion smoothness: VBench's distance of odd frames from the midpoint of their even neighbors.

VBench (Huang et al., CVPR 2024), section 3.2. With an interpolation network g::

    d_i = mean |g(x_{2i}, x_{2i+2}) - x_{2i+1}|,    s = (255 - mean of d_i) / 255

An even number of frames leaves the last one unused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from miga_bench.metrics.functional.flickering import absolute_difference

Midpoint = Callable[[Tensor, Tensor], Tensor]


def _smoothness_update(
    frames: Tensor, waiting: Tensor | None, midpoint: Midpoint
) -> tuple[Tensor, Tensor]:
    """Return the distances ``[n]`` that the next frames complete, and the frames that still wait.

    Args:
        frames: uint8 ``[T, 3, H, W]``.
        waiting: The one or two last frames, from an even one on; None at the start of a video.
        midpoint: Takes two batches of uint8 frames and returns those halfway.
    """
    if waiting is not None:
        frames = torch.cat([waiting, frames])
    pairs = (len(frames) - 1) // 2
    if not pairs:
        return torch.zeros(0, dtype=torch.float64), frames
    even, odd = frames[: 2 * pairs + 1 : 2], frames[1 : 2 * pairs : 2]
    # copies: what waits must not hold on to a piece of the video
    return absolute_difference(midpoint(even[:-1], even[1:]), odd), frames[2 * pairs :].clone()


def motion_smoothness(video: Tensor, midpoint: Midpoint) -> Tensor:
    """Return how well a video's motion agrees with interpolation.

    Args:
        video: uint8 ``[T, 3, H, W]``, T >= 3.
        midpoint: Takes two batches of uint8 frames and returns those halfway.

    Returns:
        A float64 scalar in [0, 1]; 1 for a still video, if ``midpoint`` of equals is the same.

    Example:
        >>> import torch
        >>> video = torch.arange(0, 30, 10, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 4, 4)
        >>> motion_smoothness(video, lambda a, b: ((a.int() + b.int()) // 2).byte())
        tensor(1., dtype=torch.float64)
    """
    return (255 - _smoothness_update(video, None, midpoint)[0].mean()) / 255
