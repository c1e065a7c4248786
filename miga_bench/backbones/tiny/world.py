"""The procedural world: a sprite moves over a patterned field, 64x64 pixels, 16 frames a second.

A caption fixes names only. The exact hue, size, proportions, speed, the texture's numbers and the
whole field pattern are drawn freely: they are what a long video can drift in. The plane is a torus
for the sprite, so motion is stationary and every window of an endless video looks like training.

The sprite's brightest channel is always above `SPRITE_VALUE`'s lower end and the field's below
`FIELD_VALUE`'s upper end; textures on the sprite change saturation, never brightness. A threshold
between the two bands therefore finds the sprite exactly, which `reader` relies on.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from miga_bench.backbones.tiny.grammar import Scene

SIDE = 64
FPS = 16
CLIP_FRAMES = 81

# Degrees: (center, half width). The gaps between names are wider than a drift of a few degrees.
HUES = {
    "red": (0.0, 14.0),
    "yellow": (56.0, 12.0),
    "green": (118.0, 18.0),
    "cyan": (180.0, 14.0),
    "blue": (230.0, 16.0),
    "purple": (290.0, 16.0),
}
SPRITE_VALUE = (0.92, 1.0)
FIELD_VALUE = (0.30, 0.42)
RADIUS = {"small": (8.0, 10.0), "large": (12.0, 15.0)}
SPEED = (0.4, 1.0)  # pixels per frame
STRIDE = 4  # frames (one latent) that a step of motion is taken over, so that jitter is no travel
HEADING = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

# Single precision throughout; the type names no width because numpy's stubs lose it on the way.
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Waves:
    """A flat texture: its kind and the free numbers that place it."""

    kind: str
    angle: float  # radians
    period: float  # pixels
    phase: tuple[float, float]  # radians, along and across


@dataclass(frozen=True)
class Look:
    """Everything needed to render a scene exactly; the caption's names made numbers."""

    shape: str
    hue: float  # degrees
    saturation: float
    value: float
    pale: float  # saturation of the texture's second tone
    radius: float  # pixels
    aspect: float  # width / height
    texture: Waves
    motion: str
    speed: float  # pixels per frame
    start: tuple[float, float]  # pixels, x and y of the centroid at frame 0
    field_hue: float  # degrees
    field_saturation: float
    field_value: float  # of the brighter tone
    field_contrast: float  # darker tone / brighter tone
    pattern: Waves


def draw_look(scene: Scene, rng: random.Random) -> Look:
    """Draw the free numbers of a scene; attributes the caption leaves out are drawn too."""
    size = scene.size or rng.choice(tuple(RADIUS))
    kinds = ("plain", "striped", "dotted", "checkered")
    return Look(
        shape=scene.shape,
        hue=_draw_hue(scene.color, rng),
        saturation=rng.uniform(0.82, 1.0),
        value=rng.uniform(*SPRITE_VALUE),
        pale=rng.uniform(0.15, 0.4),
        radius=rng.uniform(*RADIUS[size]),
        aspect=math.exp(rng.uniform(-0.22, 0.22)),
        texture=_draw_waves(scene.texture or rng.choice(kinds), (9.0, 14.0), rng),
        motion=scene.motion,
        speed=rng.uniform(*SPEED),
        start=(rng.uniform(0, SIDE), rng.uniform(0, SIDE)),
        field_hue=_draw_hue(scene.field, rng),
        field_saturation=rng.uniform(0.6, 0.95),
        field_value=rng.uniform(*FIELD_VALUE),
        field_contrast=rng.uniform(0.3, 0.6),
        pattern=_draw_waves(scene.pattern or rng.choice(kinds), (20.0, 36.0), rng),
    )


def positions(look: Look, frames: int, first: int = 0) -> Array:
    """Centroids [frames, 2] in pixels, (x, y) in [0, 64), of frames ``first`` onward."""
    time = np.arange(first, first + frames)[:, None]
    way = np.array(HEADING[look.motion])
    path: Array = ((np.array(look.start) + look.speed * way * time) % SIDE).astype(np.float32)
    return path


def heading(x: float, y: float) -> str | None:
    """The motion word nearest to a step (x, y) in pixels; None below half a pixel or for NaN."""
    if not math.hypot(x, y) >= 0.5:
        return None
    return max(HEADING, key=lambda name: HEADING[name][0] * x + HEADING[name][1] * y)


def render(look: Look, frames: int = CLIP_FRAMES, first: int = 0) -> torch.Tensor:
    """Render a clip.

    Args:
        look: What to draw.
        frames: How many frames, any number.
        first: Number of the first frame; a long video can be rendered in pieces.

    Returns:
        Frames [frames, 3, 64, 64], float32 in [0, 1].
    """
    return torch.from_numpy(draw(look, positions(look, frames, first)))


def draw(look: Look, path: Array) -> Array:
    """Draw the sprite at given places.

    Args:
        look: What to draw; its motion, speed and start are not used.
        path: Centroids [T, 2], (x, y) in pixels.

    Returns:
        Frames [T, 3, 64, 64], float32 in [0, 1].
    """
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    bright = hsv_to_rgb(look.field_hue, look.field_saturation, look.field_value)
    dark = bright * look.field_contrast
    field = _mix(dark, bright, waves(look.pattern, x - SIDE / 2, y - SIDE / 2))
    half = SIDE / 2
    dx = (x[None] - path[:, 0, None, None] + half) % SIDE - half
    dy = (y[None] - path[:, 1, None, None] + half) % SIDE - half
    cover = coverage(look.shape, dx, dy, look.radius, look.aspect)
    tone = hsv_to_rgb(look.hue, look.saturation, look.value)
    pale = hsv_to_rgb(look.hue, look.pale, look.value)
    skin = _mix(tone, pale, waves(look.texture, dx, dy))
    return np.moveaxis(field + cover[..., None] * (skin - field), -1, 1).copy()


def coverage(
    shape: str, dx: Array, dy: Array, radius: Array | float, aspect: Array | float
) -> Array:
    """Share of each pixel that the sprite covers, from an approximate signed distance.

    Args:
        shape: One of the grammar's shapes.
        dx: Offsets right of the centroid, in pixels.
        dy: Offsets below it, same shape as ``dx``.
        radius: Pixels; a circle of aspect 1 has exactly this radius.
        aspect: Width / height; the area does not depend on it.

    Returns:
        Coverage in [0, 1], of ``dx``'s shape.
    """
    stretch = np.sqrt(aspect)
    u, v = dx / (radius * stretch), dy * stretch / radius
    distance = _DISTANCES[shape](u, v) * radius
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def waves(texture: Waves, x: Array, y: Array) -> Array:
    """Weight of the texture's second tone in [0, 1] at points (x, y), edges one pixel soft."""
    if texture.kind == "plain":
        return np.zeros_like(x)
    step = 2 * math.pi / texture.period
    cos, sin = math.cos(texture.angle), math.sin(texture.angle)
    along = np.cos(step * (x * cos + y * sin) + texture.phase[0])
    if texture.kind == "striped":
        height = along
    else:
        across = np.cos(step * (y * cos - x * sin) + texture.phase[1])
        height = along * across if texture.kind == "checkered" else along + across - 0.6
    return np.clip(0.5 + height / step, 0, 1).astype(np.float32)


def hsv_to_rgb(hue: float, saturation: float, value: float) -> Array:
    """One color [3] in [0, 1]; hue in degrees."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    rgb = value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb.astype(np.float32)


def _draw_hue(name: str, rng: random.Random) -> float:
    center, half_width = HUES[name]
    return (center + rng.uniform(-half_width, half_width)) % 360.0


def _draw_waves(kind: str, period: tuple[float, float], rng: random.Random) -> Waves:
    turn = 2 * math.pi
    phase = (rng.uniform(0, turn), rng.uniform(0, turn))
    return Waves(kind, rng.uniform(0, math.pi), rng.uniform(*period), phase)


def _mix(first: Array, second: Array, weight: Array) -> Array:
    return first + weight[..., None] * (second - first)


def _circle(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - 1


def _square(u: Array, v: Array) -> Array:
    return np.maximum(abs(u), abs(v)) - 0.9


def _triangle(u: Array, v: Array) -> Array:
    slant = math.sqrt(3) / 2 * abs(u) - v / 2
    return np.maximum(v, slant) - 0.66


def _cross(u: Array, v: Array) -> Array:
    u, v = abs(u), abs(v)
    return np.minimum(np.maximum(u - 0.36, v - 1.12), np.maximum(v - 0.36, u - 1.12))


def _star(u: Array, v: Array) -> Array:
    # Fold the plane into half a ray of the star, then measure to the one edge left there.
    outer, inner, half = 1.3, 0.52, math.pi / 5
    angle = np.arctan2(u, -v) % (2 * half)
    angle = np.minimum(angle, 2 * half - angle)
    length = np.hypot(u, v)
    px, py = length * np.cos(angle), length * np.sin(angle)
    ex, ey = inner * math.cos(half) - outer, inner * math.sin(half)
    return ((px - outer) * ey - py * ex) / math.hypot(ex, ey)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
}
