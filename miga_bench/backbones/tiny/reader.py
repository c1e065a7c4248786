"""Reads frames of the embedded world back: which shape, color, place, size and field.

Nothing is learned. The sprite is what is brighter than any field; its centroid and second moments on
the torus give place, size and proportions; the shape is the template of that size that overlaps best;
hues are circular means weighted by chroma. All frames are read at once.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from miga_bench.backbones.tiny.grammar import SHAPES, SIZES
from miga_bench.backbones.tiny.world import HUES, RADIUS, SIDE, STRIDE, coverage

# Between the brightest field (0.42) and the dimmest sprite (0.92), with room for blurry frames.
_DARK, _BRIGHT = 0.5, 0.75
# Anything smaller than a third of the smallest sprite or larger than twice the largest is none.
_MIN_AREA, _MAX_AREA = 45.0, 1500.0
_MIN_OVERLAP = 0.55
_REACH = 24.0  # pixels from the centroid within which a sprite lies
THRESHOLDS = (_DARK, _BRIGHT, _MIN_AREA, _MAX_AREA, _MIN_OVERLAP, _REACH)


@dataclass(frozen=True)
class Reading:
    """What N frames show. Where no sprite is found, names are None and numbers are NaN.

    Attributes:
        found: Whether there is a sprite, bool [N].
        shape: N names or None.
        color: N names or None.
        size: N names or None.
        field: N names; a field always has one.
        hue: Sprite's hue in degrees [0, 360), [N].
        place: Sprite's centroid (x, y) in pixels [0, 64), on the torus, [N, 2].
        radius: Pixels; the radius the world would draw this shape with, [N].
        aspect: Width / height, [N].
        field_hue: Degrees [0, 360), [N].
        field_color: Mean color of the field in [0, 1], [N, 3].
        mask: Share of each pixel taken by sprite, in [0, 1], [N, 64, 64].
    """

    found: Tensor
    shape: list[str | None]
    color: list[str | None]
    size: list[str | None]
    field: list[str]
    hue: Tensor
    place: Tensor
    radius: Tensor
    aspect: Tensor
    field_hue: Tensor
    field_color: Tensor
    mask: Tensor


def read(frames: Tensor) -> Reading:
    """Read frames.

    Args:
        frames: One frame [3, 64, 64] or N of them [N, 3, 64, 64], in [0, 1].

    Returns:
        What they show; of N = 1 for a single frame.
    """
    frames = (frames[None] if frames.dim() == 3 else frames).detach().float().clamp(0, 1)
    mask = ((frames.amax(1) - _DARK) / (_BRIGHT - _DARK)).clamp(0, 1)
    place, dx, dy, own = _locate(mask)
    area = own.sum((1, 2))
    safe = area.clamp_min(1e-6)
    spread_x = (own * dx**2).sum((1, 2)) / safe
    spread_y = (own * dy**2).sum((1, 2)) / safe
    aspect = (spread_x / spread_y.clamp_min(1e-6)).sqrt().clamp(0.5, 2.0)
    overlaps, radii = _match(own, dx, dy, area.clamp(_MIN_AREA, _MAX_AREA), aspect)
    overlap, best = overlaps.max(1)
    found = (area >= _MIN_AREA) & (area <= _MAX_AREA) & (overlap >= _MIN_OVERLAP)

    hue = _mean_hue(frames, (own >= 1).float())
    field_weight = (_spread(mask) < 0.02).float()
    # A frame that is bright all over has no field left; its darkest pixels then stand for it.
    empty = field_weight.sum((1, 2)) == 0
    field_weight[empty] = 1.0
    weight = field_weight[:, None]
    field_color = (frames * weight).sum((2, 3)) / weight.sum((2, 3))
    field_hue = _hue(field_color[:, :, None, None])[:, 0, 0]

    nothing = torch.full_like(hue, math.nan)
    radius = radii.gather(1, best[:, None])[:, 0]
    boundary = (RADIUS["small"][1] + RADIUS["large"][0]) / 2
    here = found.tolist()
    return Reading(
        found=found,
        shape=[SHAPES[i] if ok else None for i, ok in zip(best.tolist(), here, strict=True)],
        color=[name_of(h) if ok else None for h, ok in zip(hue.tolist(), here, strict=True)],
        size=[
            SIZES[int(r > boundary)] if ok else None
            for r, ok in zip(radius.tolist(), here, strict=True)
        ],
        field=[name_of(h) for h in field_hue.tolist()],
        hue=torch.where(found, hue, nothing),
        place=torch.where(found[:, None], place, nothing[:, None]),
        radius=torch.where(found, radius, nothing),
        aspect=torch.where(found, aspect, nothing),
        field_hue=field_hue,
        field_color=field_color,
        mask=_spread(mask),
    )


def name_of(hue: float) -> str:
    """The color name whose range is nearest to a hue in degrees."""

    def outside(name: str) -> float:
        center, half_width = HUES[name]
        return abs(hue_difference(hue, center)) - half_width

    return min(HUES, key=outside)


def hue_difference(first: float, second: float) -> float:
    """Signed difference of two hues in degrees, in [-180, 180)."""
    return (first - second + 180.0) % 360.0 - 180.0


def torus(offset: Tensor) -> Tensor:
    """The shortest of the offsets that are equal on the torus, in [-32, 32) pixels."""
    return (offset + SIDE / 2) % SIDE - SIDE / 2


def steps_of(place: Tensor) -> Tensor:
    """Displacements [N - STRIDE, 2] of places [N, 2] over STRIDE frames; NaN where either end has no sprite."""
    return torus(place[STRIDE:] - place[:-STRIDE])


def _locate(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centroid [N, 2] of the main blob, offsets from it, and the mask within reach of it."""
    blurred = mask[:, None]
    for dims in ((5, 0), (0, 5)):
        padded = F.pad(blurred, (dims[0], dims[0], dims[1], dims[1]), mode="circular")
        blurred = F.avg_pool2d(padded, (2 * dims[1] + 1, 2 * dims[0] + 1), stride=1)
    peak = blurred.flatten(1).argmax(1)
    place = torch.stack([peak % SIDE, peak // SIDE], 1).float()
    line = torch.arange(SIDE, dtype=torch.float32, device=mask.device)
    for _ in range(4):
        dx = torus(line - place[:, :1])[:, None, :]
        dy = torus(line - place[:, 1:])[:, :, None]
        own = mask * (dx**2 + dy**2 <= _REACH**2)
        mass = own.sum((1, 2)).clamp_min(1e-6)
        step = torch.stack([(own * dx).sum((1, 2)) / mass, (own * dy).sum((1, 2)) / mass], 1)
        place = (place + step) % SIDE
    dx = torus(line - place[:, :1])[:, None, :]
    dy = torus(line - place[:, 1:])[:, :, None]
    return place, dx, dy, own


def _match(
    own: Tensor, dx: Tensor, dy: Tensor, area: Tensor, aspect: Tensor
) -> tuple[Tensor, Tensor]:
    """Overlap with each shape's template of equal area, and its radius; both [N, shapes]."""
    overlaps, radii = [], []
    across, down = np.broadcast_arrays(dx.cpu().numpy(), dy.cpu().numpy())
    for shape in SHAPES:
        radius = (area / _unit_area(shape)).sqrt()
        size = [values.cpu().numpy()[:, None, None] for values in (radius, aspect)]
        template = torch.from_numpy(coverage(shape, across, down, *size)).to(own)
        both = torch.minimum(own, template).sum((1, 2))
        overlaps.append(both / torch.maximum(own, template).sum((1, 2)).clamp_min(1e-6))
        radii.append(radius)
    return torch.stack(overlaps, 1), torch.stack(radii, 1)


@functools.cache
def _unit_area(shape: str) -> float:
    """Area in square pixels of a shape of radius 1, measured on a fine grid."""
    radius = 300.0
    y, x = np.mgrid[-450:451, -450:451].astype(np.float32)
    return float(coverage(shape, x, y, radius, 1.0).sum()) / radius**2


def _spread(mask: Tensor) -> Tensor:
    """The mask grown by one pixel in every direction, so that soft edges are inside."""
    padded = F.pad(mask[:, None], (1, 1, 1, 1), mode="circular")
    return F.max_pool2d(padded, 3, stride=1)[:, 0]


def _hue(frames: Tensor) -> Tensor:
    """Hue in degrees [N, H, W] of frames [N, 3, H, W]."""
    red, green, blue = frames.unbind(1)
    top, bottom = frames.amax(1), frames.amin(1)
    chroma = (top - bottom).clamp_min(1e-6)
    hue = torch.where(
        top == red,
        (green - blue) / chroma,
        torch.where(top == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return hue * 60 % 360


def _mean_hue(frames: Tensor, weight: Tensor) -> Tensor:
    """Circular mean hue in degrees [N], weighted by chroma and ``weight`` [N, H, W]."""
    weight = weight * (frames.amax(1) - frames.amin(1))
    angle = torch.deg2rad(_hue(frames))
    sine, cosine = (weight * angle.sin()).sum((1, 2)), (weight * angle.cos()).sum((1, 2))
    return torch.rad2deg(torch.atan2(sine, cosine)) % 360
