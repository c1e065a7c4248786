"""Windows that an endless video takes, by arithmetic on its settings; tests check it against the samplers.

T are the steps, f the window's latents, c the level at which sampling ends (0, or 1 on VideoCrafter2's
grid). The opening clip takes ``T - c`` windows. A pass denoises the whole queue, so no frame
leaves before the queue is filled; searches come on top of these counts.

* FIFO, x slots of context: frame 0 stands at level ``T - f + 1`` and goes down one level in every
  pass of ``ceil(T / (f - x))`` windows, so the first frame takes
  ``T - c + (T - f + 1) * ceil(T / (f - x))``, and every further latent ``ceil(T / (f - x))``. With
  ``growth`` pass p (from 0) of these has ``f + p`` slots and takes ``1 + ceil(p / (f - x))``.
* ScalingNoise, m beams of k candidates: as FIFO, with the last window of each pass but the first made for
  ``m * k`` candidates. This is the minimum: beams that differ before their last window take more.
* MIGA, L slots a chunk, s slots written a window, l read besides guidance frames, stage 2 from level e:
  ``o = f // L`` chunks of the opening are in the queue, pass p (from 0) has ``n = min(o + 1 + p, T - e)``
  chunks and takes about ``1 + ceil((n * L - l) / s)`` windows. The first chunk leaves after ``T - o - e``
  passes, one more after each pass that follows. The passes of stage 2 and of the re-noise pass are
  counted backwards from the one latent that the last of them has to give: to write N latents one takes
  the windows whose cuts (``a, a + s, ...``, a its shift) reach N, and reads up to the last one's end,
  which is the N of the pass before it. What the first of them reads must have left the queue.
  A further latent takes the mean windows of a full queue's pass ``/ L``, and ``1 / s`` for each later pass.
"""

from __future__ import annotations

import math
from statistics import mean

from miga_bench.backbones.base import Backbone
from miga_bench.sampling import FifoSettings, MigaSettings, ScalingNoiseSettings
from miga_bench.sampling.miga import GROWTH_ENDS
from miga_bench.sampling.windows import growth_partition, partition

Endless = FifoSettings | ScalingNoiseSettings | MigaSettings


def windows_before_first(settings: Endless, backbone: Backbone) -> int:
    """Return the least windows that are denoised before an endless video's first frame leaves.

    Args:
        settings: Of a method that is endless, not of a ``release`` preset.
        backbone: Gives window and schedule.
    """
    backbone = settings.reading(backbone)
    clean = backbone.schedule(settings.steps).clean
    opening = settings.steps - clean
    if isinstance(settings, MigaSettings):
        return opening + _miga_before_first(settings, backbone.window, clean)
    passes = settings.steps - backbone.window + 1
    if isinstance(settings, FifoSettings) and settings.growth:
        written = _fifo_stride(settings, backbone.window)
        return opening + sum(1 + math.ceil(number / written) for number in range(passes))
    total = opening + passes * _fifo_windows(settings, backbone.window)
    if isinstance(settings, ScalingNoiseSettings):
        total += (passes - 1) * (settings.beams * settings.candidates - 1)
    return total


def windows_per_latent(settings: FifoSettings | MigaSettings, backbone: Backbone) -> float:
    """Return the windows that every further latent of an endless video takes, searches left out.

    Args:
        settings: Not of a ``release`` preset.
        backbone: Gives window and schedule.
    """
    backbone = settings.reading(backbone)
    if isinstance(settings, FifoSettings):
        return _fifo_windows(settings, backbone.window)
    s, clean = settings, backbone.schedule(settings.steps).clean
    length = (s.steps - clean - s.stage2_steps) * s.zigzag
    local = backbone.window - s.guidance_frames
    full = mean(len(partition(length, s.stride, local, shift)) for shift in range(s.stride))
    return full / s.zigzag + (s.stage2_steps + s.renoise) / s.stride


def _fifo_windows(settings: FifoSettings | ScalingNoiseSettings, window: int) -> int:
    return math.ceil(settings.steps / _fifo_stride(settings, window))


def _fifo_stride(settings: FifoSettings | ScalingNoiseSettings, window: int) -> int:
    return window // 2 if settings.lookahead else window


def _miga_before_first(s: MigaSettings, window: int, clean: int) -> int:
    exit_level, opening = clean + s.stage2_steps, window // s.zigzag
    behind, read = _stage_2(s, window)
    passes = s.steps - opening - exit_level + math.ceil(read / s.zigzag) - 1
    grown = max(0, s.steps - opening - exit_level - GROWTH_ENDS)
    local, windows = window - s.guidance_frames, 0
    for number in range(passes):
        length = min(opening + 1 + number, s.steps - exit_level) * s.zigzag
        if number < grown:
            windows += len(growth_partition(length, s.stride, local))
        else:
            windows += len(partition(length, s.stride, local, (number - grown) % s.stride))
    return windows + behind


def _stage_2(s: MigaSettings, window: int) -> tuple[int, int]:
    """Return the windows behind the queue for one latent, and the latents they read of it."""
    anchors = s.guidance_frames if s.guidance_reach == "anchor" else 0
    windows, wanted = 0, 1
    for number in reversed([*range(s.stage2_steps), *range(s.renoise)]):
        first = number % s.stride or s.stride  # the first window's cut
        more = max(0, math.ceil((wanted - first) / s.stride))
        windows += 1 + more
        start = first + (more - 1) * s.stride if more else 0
        wanted = start + window - anchors
    return windows, wanted
