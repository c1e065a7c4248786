"""FreeLong (Lu et al., NeurIPS 2024, arXiv 2407.19918) and FreeLong++ (arXiv 2507.00162).

The whole video is denoised as one clip. Wherever the network attends over frames, attention within
reach of the trained window keeps the detail and attention over many frames the structure; they are
joined in the frequency domain, low frequencies from the wide one, high ones from the local one.

* ``lowpass`` is FreeLong (SpectralBlend temporal attention) as released for VideoCrafter2, at any
  length: one local and one full attention, a Gaussian low-pass over time and space, the finest
  level local only.
* ``bands`` is our implementation of FreeLong++ from the paper, whose code is not public: branches
  that reach 1, 2, 4, ... windows, each kept in its own band of temporal frequencies.

What follows attention (the projection out, the residual sum) is linear and acts on every token
alike, so joining attention's outputs is joining the outputs of whole blocks, as the papers have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from miga_bench.backbones.base import AttentionSite, Backbone, FrameAttention
from miga_bench.sampling.attention import full_attention, local_attention
from miga_bench.sampling.base import CommonSettings
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.rules import require
from miga_bench.sampling.whole import WholeVideo


@dataclass(frozen=True)
class FreeLongSettings(CommonSettings):
    """Settings of FreeLong and FreeLong++.

    Attributes:
        blend: ``lowpass`` (FreeLong) or ``bands`` (FreeLong++).
        start: Noise to start from: ``shuffled`` reorders the first window's noise for the frames after it,
            ``specmix`` mixes that with noise of each frame's own, ``independent`` is the latter alone.
        cut: Temporal frequency, as a share of the highest, up to which the wide branches count: the
            standard deviation of ``lowpass``, the upper edge of ``bands``.
        spatial_cut: The same for spatial frequencies; for ``lowpass`` only.
        branches: Branches of ``bands``; 0 takes as many as it needs for the widest to cover the
            video.
        shuffle: Frames that are reordered among themselves, at most a window.
    """

    blend: Literal["lowpass", "bands"]
    start: Literal["shuffled", "specmix", "independent"]
    cut: float = 0.25
    spatial_cut: float = 0.25
    branches: int = 0
    shuffle: int = 4


def _coordinates(size: int) -> Tensor:
    """Return the released filter's coordinate of each FFT bin: ``2 i / size - 1``, DC at size // 2.

    For odd sizes this puts the zero frequency at ``-1 / size``, a quirk that is kept.
    """
    return 2 * ((torch.arange(size) + size // 2) % size) / size - 1


@lru_cache(maxsize=16)
def low_pass(frames: int, height: int, width: int, cut: float, spatial_cut: float) -> Tensor:
    """Return FreeLong's Gaussian low-pass for ``rfftn``, ``[frames, height, width // 2 + 1]``.

    ``exp(-((f / cut)^2 + (y / spatial_cut)^2 + (x / spatial_cut)^2) / 2)``. The release takes the real part
    of what it filters, which amounts to filtering by the mean of the filter and its mirror.
    """
    sizes = ((frames, cut), (height, spatial_cut), (width, spatial_cut))
    with torch.inference_mode(mode=False):  # a later call may train
        axes = [_coordinates(size) / deviation for size, deviation in sizes]
        mirrored = [axis.roll(-1).flip(0) for axis in axes]
        responses = [
            torch.exp(-0.5 * (f[:, None, None] ** 2 + y[:, None] ** 2 + x**2))
            for f, y, x in (axes, mirrored)
        ]
        return ((responses[0] + responses[1]) / 2)[..., : width // 2 + 1]


def low_pass_blend(local: Tensor, wide: Tensor, response: Tensor, height: int) -> Tensor:
    """Return the low frequencies of ``wide`` and the rest of ``local``.

    Computed as ``local + filter(wide - local)``: one transform there and back, and exactly
    ``local`` where the two are equal.

    Args:
        local: ``[B, F, P, heads, a]``.
        wide: As ``local``.
        response: See ``low_pass``.
        height: Rows of the token grid.
    """
    difference = (wide.float() - local.float()).unflatten(2, (height, -1))
    size, axes = difference.shape[1:4], (1, 2, 3)
    spectrum = torch.fft.rfftn(difference, dim=axes)
    spectrum *= response.to(spectrum.device)[..., None, None]
    low = torch.fft.irfftn(spectrum, s=size, dim=axes).flatten(2, 3)
    return (local + low).type_as(local)


def bands(frames: int, branches: int, cut: float) -> Tensor:
    """Return which temporal frequencies each branch keeps, 0 or 1 ``[branches, frames // 2 + 1]``.

    Branch 0 reaches one window and keeps all above ``cut``; each next one reaches twice as far
    and keeps the next octave below; the last keeps the rest down to zero. An edge belongs to the
    wider branch. The bands sum to one.
    """
    frequency = torch.arange(frames // 2 + 1) * 2 / frames
    edges = cut / 2.0 ** torch.arange(branches - 1)
    branch = (frequency <= edges[:, None]).sum(0)
    return (branch == torch.arange(branches)[:, None]).float()


def band_blend(local: Tensor, wider: Iterable[Tensor], keep: Tensor) -> Tensor:
    """Return every branch in its own band of temporal frequencies (FreeLong++).

    Computed as ``local + sum_b filter_b(wide_b - local)``, exactly ``local`` where all are equal.

    Args:
        local: ``[B, F, P, heads, a]``, branch 0.
        wider: The other branches; only one is held at a time.
        keep: See ``bands``.
    """
    spectrum: Tensor | None = None
    for wide, band in zip(wider, keep[1:].to(local.device), strict=True):
        part = torch.fft.rfft(wide.float() - local.float(), dim=1) * band[:, None, None, None]
        spectrum = part if spectrum is None else spectrum.add_(part)
    if spectrum is None:
        return local
    return (local + torch.fft.irfft(spectrum, n=local.shape[1], dim=1)).type_as(local)


def shuffled_noise(noise: NoiseSource, window: int, frames: int, shuffle: int) -> Tensor:
    """Return one window's noise, followed by the noise of one window earlier, reordered, again and again.

    Each run of ``shuffle`` frames is a permutation of the run one window earlier, as FreeLong starts
    (from FreeNoise, Qiu et al. 2024). The order is that of numbers drawn for those frames.

    Returns:
        ``[frames, C, H, W]``; the first window is the plain clip's noise.
    """
    order = list(range(min(window, frames)))
    numbers = list(range(window, frames + shuffle))
    keys = noise(numbers, "freelong shuffle")[:, 0, 0, 0].tolist() if frames > window else []
    while len(order) < frames:
        first = len(order)
        source = range(first - window, first - window + shuffle)
        order += [order[frame] for frame in sorted(source, key=keys.__getitem__)]
    return noise(list(range(window)), "base")[order[:frames]]


def mixed_noise(shared: Tensor, own: Tensor) -> Tensor:
    """Return slow frequencies of shared noise, fast ones of each frame's own (FreeLong++, SpecMix).

    The spectra are summed with weights ``cos(pi d / 2)`` and ``sin(pi d / 2)``, whose squares sum to one; d
    is a temporal frequency's distance from zero, 1 at the highest. The paper writes d by the index of the
    shifted spectrum; for odd lengths this is the same.

    Args:
        shared: ``[F, C, H, W]``, see ``shuffled_noise``.
        own: ``[F, C, H, W]``, independent from frame to frame.
    """
    frames = len(shared)
    turn = torch.arange(frames // 2 + 1, device=shared.device) / max(1, frames // 2) * math.pi / 2
    turn = turn[:, None, None, None]
    slow, fast = (torch.fft.rfft(x.float(), dim=0) for x in (shared, own))
    return torch.fft.irfft(turn.cos() * slow + turn.sin() * fast, n=frames, dim=0)


@dataclass(frozen=True)
class LowPassAttention:
    """FreeLong's attention.

    Attributes:
        reach: Frames to either side that local attention sees.
        cut: See ``FreeLongSettings``.
        spatial_cut: As ``cut``.
    """

    reach: int
    cut: float
    spatial_cut: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, site: AttentionSite) -> Tensor:
        """Attend; see ``FrameAttention``. A U-Net's finest level, of tokens of one pixel, stays local."""
        local = local_attention(query, key, value, self.reach, site.joint)
        if site.scale == 1:
            return local
        wide = full_attention(query, key, value, site.joint)
        size = (query.shape[1], site.height, site.width)
        return low_pass_blend(local, wide, low_pass(*size, self.cut, self.spatial_cut), site.height)


@dataclass(frozen=True)
class BandAttention:
    """FreeLong++'s attention.

    Attributes:
        reaches: Frames to either side that each branch sees.
        cut: See ``FreeLongSettings``.
    """

    reaches: tuple[int, ...]
    cut: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, site: AttentionSite) -> Tensor:
        """Attend; see ``FrameAttention``."""
        branches = (local_attention(query, key, value, r, site.joint) for r in self.reaches)
        local = next(branches)
        return band_blend(local, branches, bands(query.shape[1], len(self.reaches), self.cut))


class FreeLong(WholeVideo[FreeLongSettings]):
    """FreeLong on VideoCrafter2, FreeLong++ on Wan; not endless."""

    name = "freelong"

    def check(self, backbone: Backbone) -> None:
        """See ``WholeVideo.check``."""
        s = self.settings
        for name, value in (("cut", s.cut), ("spatial_cut", s.spatial_cut)):
            require(0 < value <= 1, f"{name} is {value}: it must be above 0 and at most 1")
        require(
            0 <= s.branches <= 8,
            f"branches is {s.branches}: it must be from 1 to 8, or 0 to choose by the length",
        )
        require(
            1 <= s.shuffle <= backbone.window,
            f"shuffle is {s.shuffle}: it must be from 1 to the {backbone.window} latents of a window "
            f"on {backbone.name}",
        )

    def start(self, noise: NoiseSource, window: int, frames: int) -> Tensor:
        """See ``WholeVideo.start``."""
        kind = self.settings.start
        numbers = list(range(frames))
        if kind == "independent":
            return noise(numbers, "base")
        shared = shuffled_noise(noise, window, frames, self.settings.shuffle)
        return mixed_noise(shared, noise(numbers, "specmix")) if kind == "specmix" else shared

    def attention(self, window: int, frames: int, timestep: float) -> FrameAttention:
        """See ``WholeVideo.attention``; every step has the same."""
        s = self.settings
        if s.blend == "lowpass":
            return LowPassAttention(window // 2, s.cut, s.spatial_cut)
        count = s.branches or 1 + math.ceil(math.log2(frames / window))
        # The branch that reaches k windows sees |i - j| < k window / 2.
        return BandAttention(tuple((2**b * window - 1) // 2 for b in range(count)), s.cut)

    def copies(self, window: int) -> float:
        """See ``WholeVideo.copies``: two branches, a difference, two spectra, the result."""
        return 6.0
