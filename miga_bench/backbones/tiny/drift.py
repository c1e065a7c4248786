"""How far a video of the embedded world strays: from its own opening, and from its caption.

Every measure comes with motion beside it: a steadier video may simply move less.
"""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from miga_bench.backbones.tiny.grammar import Scene
from miga_bench.backbones.tiny.reader import Reading, read, torus
from miga_bench.backbones.tiny.world import CLIP_FRAMES, HEADING

# Motion is taken over this many frames (one latent), so that jitter does not pass for travel.
_STRIDE = 4


@dataclass(frozen=True)
class Drift:
    """Measures of one video; NaN where nothing could be measured.

    Attributes:
        frames: Length of the video.
        found: Share of frames with a sprite, [0, 1].
        hue_drift: Sprite: mean circular distance of its hue from the opening's, degrees [0, 180].
        size_drift: Sprite: mean absolute log of its radius over the opening's median radius.
        field_drift: Field: root mean square over channels of its mean color's distance from the
            opening's, averaged over frames, [0, 1].
        pattern_drift: Field: mean absolute difference from the opening's field per pixel that no
            sprite covers, [0, 1]. Sees the pattern move or change, and the color too.
        flicker: Field: mean absolute difference of successive frames where neither has the sprite.
        path: Distance travelled, pixels per frame, over steps of 4 frames on the torus.
        direction: The motion word nearest to the mean step; None if it does not move.
        asked_color: Share of all frames that show the asked color; NaN if nothing was asked.
        asked_shape: Share of all frames that show the asked shape.
        asked_field: Share of all frames that show the asked field color.
        asked_motion: Share of all steps of 4 frames that go the asked way.
    """

    frames: int
    found: float
    hue_drift: float
    size_drift: float
    field_drift: float
    pattern_drift: float
    flicker: float
    path: float
    direction: str | None
    asked_color: float
    asked_shape: float
    asked_field: float
    asked_motion: float

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Plain values for JSON; NaN becomes None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def measure(frames: Tensor, asked: Scene | None = None, opening: int = CLIP_FRAMES) -> Drift:
    """Measure a video.

    Args:
        frames: [T, 3, 64, 64] in [0, 1].
        asked: What the caption asks for; without it the ``asked_*`` measures are NaN.
        opening: Frames of the opening clip that later frames are held against; in a video no longer
            than that, the first quarter is the opening.

    Returns:
        The measures; frames without a sprite are left out of the sprite's drifts and counted as
        wrong in the shares.
    """
    reading = read(frames)
    total = len(frames)
    opening = opening if total > opening else max(1, total // 4)
    later = slice(opening, None) if total > opening else slice(None)
    steps = _steps(reading)
    speed = steps.norm(dim=1)
    return Drift(
        frames=total,
        found=reading.found.float().mean().item(),
        hue_drift=_hue_off(reading.hue, opening)[later].nanmean().item(),
        size_drift=_size_drift(reading.radius, opening, later),
        field_drift=_field_off(reading.field_color, opening)[later].mean().item(),
        pattern_drift=_pattern_off(frames.float(), reading.mask, opening)[later].nanmean().item(),
        flicker=_flicker(frames.float(), reading.mask),
        path=speed.nanmean().item() / _STRIDE,
        direction=direction_of(steps),
        asked_color=_share(reading.color, asked.color) if asked else math.nan,
        asked_shape=_share(reading.shape, asked.shape) if asked else math.nan,
        asked_field=_share(reading.field, asked.field) if asked else math.nan,
        asked_motion=_share([_heading(step) for step in steps], asked.motion)
        if asked
        else math.nan,
    )


BINS = 24  # of a drift curve, at most


def over_time(frames: Tensor, opening: int = CLIP_FRAMES) -> dict[str, list[list[float]]]:
    """Return how far a video has strayed by when.

    Args:
        frames: [T, 3, 64, 64] in [0, 1].
        opening: As in ``measure``.

    Returns:
        By measure (``hue_drift``, ``field_drift``, ``pattern_drift``, as in ``Drift``) the bins, each its first
        frame, its last frame and its mean; bins in which nothing could be measured are left out.
    """
    reading, total = read(frames), len(frames)
    opening = opening if total > opening else max(1, total // 4)
    curves = {
        "hue_drift": _hue_off(reading.hue, opening),
        "field_drift": _field_off(reading.field_color, opening),
        "pattern_drift": _pattern_off(frames.float(), reading.mask, opening).nanmean((1, 2, 3)),
    }
    edges = [round(i * total / min(BINS, total)) for i in range(min(BINS, total) + 1)]
    return {
        name: [
            [first, last - 1, curve[first:last].nanmean().item()]
            for first, last in pairwise(edges)
            if not curve[first:last].isnan().all()
        ]
        for name, curve in curves.items()
    }


def direction_of(steps: Tensor) -> str | None:
    """The motion word nearest to the mean of steps [N, 2] in pixels; None below a pixel a step."""
    return _heading(steps.nanmean(0)) if len(steps) else None


def _steps(reading: Reading) -> Tensor:
    """Torus displacements [T - 4, 2] over 4 frames; NaN where either end has no sprite."""
    return torus(reading.place[_STRIDE:] - reading.place[:-_STRIDE])


def _heading(step: Tensor) -> str | None:
    x, y = step.tolist()
    if not math.hypot(x, y) >= 0.5:  # also catches NaN
        return None
    return max(HEADING, key=lambda name: HEADING[name][0] * x + HEADING[name][1] * y)


def _share(names: list[str] | list[str | None], asked: str) -> float:
    return sum(name == asked for name in names) / len(names) if names else math.nan


def _hue_off(hue: Tensor, opening: int) -> Tensor:
    first = torch.deg2rad(hue[:opening])
    home = torch.rad2deg(torch.atan2(first.sin().nanmean(), first.cos().nanmean()))
    return ((hue - home + 180) % 360 - 180).abs()


def _size_drift(radius: Tensor, opening: int, later: slice) -> float:
    return (radius[later] / radius[:opening].nanmedian()).log().abs().nanmean().item()


def _field_off(color: Tensor, opening: int) -> Tensor:
    home = color[:opening].median(0).values
    return (color - home).square().mean(1).sqrt()


def _pattern_off(frames: Tensor, mask: Tensor, opening: int) -> Tensor:
    """Against a plate of the opening: each pixel's median over the frames that leave it bare."""
    bare = (mask < 0.02)[:, None].expand_as(frames)
    plate = torch.where(bare[:opening], frames[:opening], math.nan).nanmedian(0).values
    return torch.where(bare, (frames - plate).abs(), math.nan)


def _flicker(frames: Tensor, mask: Tensor) -> float:
    bare = torch.maximum(mask[1:], mask[:-1])[:, None] < 0.02
    off = torch.where(bare.expand_as(frames[1:]), frames.diff(dim=0).abs(), math.nan)
    return off.nanmean().item()
