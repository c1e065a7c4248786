"""FreePCA (Tan et al., CVPR 2025, arXiv 2505.01172): what stays from all frames, motion from windows.

The whole video is denoised as one clip. Wherever the network attends over frames, overlapping windows of the
trained length attend within themselves. In each, principal components along time are found from the attention
over all frames. The few in which both attentions are most alike carry what stays the same, and are taken from
the attention over all frames; the others carry motion, and are taken from the window. Windows are averaged
where they overlap.

On VideoCrafter2, whose tokens attend over time at their own place, this is the method as released,
at any length. On Wan, whose tokens attend to all places of all frames, it is our adaptation: windows
of latent frames, joint in space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from miga_bench.backbones.base import AttentionSite, Backbone
from miga_bench.backbones.fused_attention import unnarrowed
from miga_bench.sampling.attention import full_attention
from miga_bench.sampling.base import CommonSettings
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.rules import require
from miga_bench.sampling.whole import WholeVideo


@dataclass(frozen=True)
class FreePcaSettings(CommonSettings):
    """Settings of FreePCA.

    Attributes:
        stride: Frames from one window to the next, at most a window.
        components: The most components that a window takes from the attention over all frames; window number
            w takes ``min(w, components)``.
        above: Timestep, from 0 to 1000, above which they are taken; at and below it windows stay local.
    """

    stride: int
    components: int = 3
    above: float = 250.0


def window_starts(frames: int, window: int, stride: int) -> list[int]:
    """Return the first frames of the windows, ``stride`` apart.

    If the windows do not reach the end exactly, a last one is placed there, so that every length is covered
    and no frame is made only to be thrown away.

    Args:
        frames: Frames to cover, at least a window.
        window: Frames of a window.
        stride: From 1 to ``window``.
    """
    starts = list(range(0, frames - window + 1, stride))
    return starts if starts[-1] == frames - window else [*starts, frames - window]


def _centered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``[B, w, N]`` float32 without each row's mean over the w frames, and those means."""
    rows = x.flatten(2).float()
    mean = rows.mean(1, keepdim=True)
    return rows - mean, mean


def borrow_consistency(
    local: Sequence[Tensor], wide: Tensor, starts: Sequence[int], components: int
) -> list[Tensor]:
    """Return windows whose most similar components are taken from the attention over all frames.

    Rows are (place, channel) pairs, columns the w frames of a window; each row's mean over the window is
    subtracted. With E the eigenvectors of the wide rows' covariance, a component is a column of rows times E.
    The components whose cosine between wide and local is largest are taken from wide, and so is the mean.

    Args:
        local: Windows ``[B, w, P, heads, a]``; the first, which has none before it, stays as it is.
        wide: ``[B, F, P, heads, a]``.
        starts: The windows' first frames.
        components: See ``FreePcaSettings``.
    """
    window = local[0].shape[1]
    wides = [wide[:, start : start + window] for start in starts[1:]]
    if not wides:
        return list(local)
    with unnarrowed(wide):
        covariance = []
        for part in wides:
            rows, _ = _centered(part)
            covariance.append(rows @ rows.mT / (window - 1))
        # A value that is not finite is told by the solver's step; here it would end in LAPACK's words.
        gram = torch.stack(covariance).nan_to_num(0, 0, 0)
        if gram.device.type == "mps":  # which has no such solver; it is w x w numbers a window
            gram = gram.cpu()
        # [windows, B, w, w], one call for all
        bases = torch.linalg.eigh(gram).eigenvectors.to(wide.device)
        out = [local[0]]
        for number, (own, part, basis) in enumerate(zip(local[1:], wides, bases, strict=True), 1):
            (own_rows, _), (part_rows, mean) = _centered(own), _centered(part)
            # [B, w, N], component by row
            motion, steady = basis.mT @ own_rows, basis.mT @ part_rows
            likeness = nnf.cosine_similarity(motion, steady, dim=2)  # [B, w]
            rank = likeness.argsort(1, descending=True).argsort(1)
            mixed = torch.where((rank < min(number, components))[..., None], steady, motion)
            out.append((basis @ mixed + mean).view_as(own))
    return out


def overlap_mean(windows: Sequence[Tensor], starts: Sequence[int], frames: int) -> Tensor:
    """Return the equally weighted mean of overlapping windows ``[B, w, ...]``, as ``[B, F, ...]``."""
    first, window = windows[0], windows[0].shape[1]
    total = first.new_zeros(first.shape[0], frames, *first.shape[2:], dtype=torch.float32)
    times = first.new_zeros(frames, *[1] * (first.ndim - 2), dtype=torch.float32)
    for start, part in zip(starts, windows, strict=True):
        total[:, start : start + window] += part
        times[start : start + window] += 1
    return total.div_(times).type_as(first)


def matched_noise(noise: NoiseSource, window: int, frames: int) -> Tensor:
    """Return noise in which every window has the first one's mean over its frames.

    The last window's noise is drawn in full before it is cut to length: matching the mean over only a few
    frames would leave them hardly any noise of their own.

    Returns:
        ``[frames, C, H, W]``; the first window is the plain clip's noise.
    """
    count = -(-frames // window)
    blocks = noise(list(range(count * window)), "base").unflatten(0, (count, window))
    means = blocks.mean(1, keepdim=True)
    # The first is left as drawn, to the last bit.
    return torch.cat([blocks[:1], blocks[1:] + (means[:1] - means[1:])]).flatten(0, 1)[:frames]


@dataclass(frozen=True)
class PcaAttention:
    """FreePCA's attention at one step.

    Attributes:
        window: Frames of a window.
        stride: See ``FreePcaSettings``.
        components: See ``FreePcaSettings``; 0 leaves the windows local, as late steps do.
    """

    window: int
    stride: int
    components: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, site: AttentionSite) -> Tensor:
        """Attend; see ``FrameAttention``."""
        frames = query.shape[1]
        starts = window_starts(frames, self.window, self.stride)
        spans = [slice(start, start + self.window) for start in starts]
        windows = [
            full_attention(query[:, span], key[:, span], value[:, span], site.joint)
            for span in spans
        ]
        if self.components:
            # More keys than in training spread attention out; the scores grow with the logarithm
            # of their number to make up for it.
            per_frame = site.height * site.width if site.joint else 1
            keys, trained = frames * per_frame, self.window * per_frame
            sharpness = math.sqrt(math.log(keys) / math.log(trained))
            wide = full_attention(query, key, value, site.joint, sharpness)
            windows = borrow_consistency(windows, wide, starts, self.components)
        return overlap_mean(windows, starts, frames)


class FreePca(WholeVideo[FreePcaSettings]):
    """FreePCA; not endless."""

    name = "freepca"

    def check(self, backbone: Backbone) -> None:
        """See ``WholeVideo.check``."""
        s, window = self.settings, backbone.window
        require(
            1 <= s.stride <= window,
            f"stride is {s.stride}: it must be from 1 to the {window} latents of a window on "
            f"{backbone.name}",
        )
        require(
            0 <= s.components <= window,
            f"components is {s.components}: it must be from 0 to the {window} latents of a window "
            f"on {backbone.name}",
        )
        require(0 <= s.above <= 1000, f"above is {s.above}: it must be a timestep from 0 to 1000")

    def start(self, noise: NoiseSource, window: int, frames: int) -> Tensor:
        """See ``WholeVideo.start``."""
        return matched_noise(noise, window, frames)

    def attention(self, window: int, frames: int, timestep: float) -> PcaAttention:
        """See ``WholeVideo.attention``."""
        s = self.settings
        return PcaAttention(window, s.stride, s.components if timestep > s.above else 0)

    def copies(self, window: int) -> float:
        """See ``WholeVideo.copies``: all windows, their results, both sums, one window's rows."""
        return 2 * window / self.settings.stride + 4
