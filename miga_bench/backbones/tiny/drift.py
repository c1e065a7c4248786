"""How far a video of the embedded world strays: from its own opening, and from its caption.

Every measure comes with motion beside it: a steadier video may simply move less.
"""

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from miga_bench.backbones.tiny.grammar import Scene
from miga_bench.backbones.tiny.reader import read, steps_of
from miga_bench.backbones.tiny.world import CLIP_FRAMES, STRIDE, heading


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


Curves = dict[str, list[list[float]]]
BINS = 24  # of a drift curve, at most
PIECE = 32  # frames read at once


class DriftMeter:
    """Measures a video that comes in pieces, each read once.

    Memory holds a few numbers of each frame, and pictures of no more than the opening clip.

    Args:
        asked: What the caption asks for; without it the ``asked_*`` measures are NaN.
        opening: Frames of the opening clip that later frames are held against; in a video no longer
            than that, the first quarter is the opening.
    """

    def __init__(self, asked: Scene | None = None, opening: int = CLIP_FRAMES) -> None:
        self._asked, self._opening = asked, opening
        self._frames = 0
        self._numbers: defaultdict[str, list[Tensor]] = defaultdict(list)  # of each frame, by name
        self._right: Counter[str] = Counter()  # frames that show what was asked
        self._plate: Tensor | None = None
        # frames and masks that have not been held against the plate, for it takes the whole opening
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._last: tuple[Tensor, Tensor] | None = None  # frame and mask
        self._flicker, self._steady = 0.0, 0  # sum of differences, and how many

    def extend(self, frames: Tensor) -> None:
        """Read the next frames, ``[N, 3, 64, 64]`` in [0, 1], N at least 1."""
        reading, frames = read(frames), frames.float()
        self._frames += len(frames)
        for name in ("found", "hue", "radius", "place", "field_color"):
            self._numbers[name].append(getattr(reading, name))
        if self._asked is not None:
            for name in ("color", "shape", "field"):
                self._right[name] += getattr(reading, name).count(getattr(self._asked, name))
        self._add_flicker(frames, reading.mask)
        self._waiting.append((frames, reading.mask))
        if self._frames > self._opening:
            self._compare(self._opening)

    def _add_flicker(self, frames: Tensor, mask: Tensor) -> None:
        last = self._last or (frames[:0], mask[:0])
        self._last = frames[-1:].clone(), mask[-1:].clone()
        off = _flicker(torch.cat([last[0], frames]), torch.cat([last[1], mask]))
        self._flicker += off.nansum(dtype=torch.float64).item()
        self._steady += int(off.isnan().logical_not().sum())

    def _compare(self, opening: int) -> None:
        """Hold what waits against the plate of the opening, once that is there."""
        frames, mask = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        if self._plate is None:
            self._plate = _plate(frames[:opening], mask[:opening])
        off = _pattern_off(frames, mask, self._plate)
        self._numbers["pattern"].append(off.nanmean((1, 2, 3)))
        self._numbers["pattern_sum"].append(off.nansum((1, 2, 3), dtype=torch.float64))
        self._numbers["pattern_count"].append(off.isnan().logical_not().sum((1, 2, 3)))

    def end(self) -> tuple[Drift, Curves]:
        """Return the measures and the curves of all that came; see ``measure`` and ``over_time``."""
        total = self._frames
        opening = self._opening if total > self._opening else max(1, total // 4)
        later = slice(opening, None) if total > opening else slice(None)
        if self._waiting:
            self._compare(opening)
        of = {name: torch.cat(parts) for name, parts in self._numbers.items()}
        hue_off = _hue_off(of["hue"], opening)
        field_off = _field_off(of["field_color"], opening)
        steps, asked = steps_of(of["place"]), self._asked
        drift = Drift(
            frames=total,
            found=of["found"].float().mean().item(),
            hue_drift=hue_off[later].nanmean().item(),
            size_drift=_size_drift(of["radius"], opening, later),
            field_drift=field_off[later].mean().item(),
            pattern_drift=(
                of["pattern_sum"][later].sum() / of["pattern_count"][later].sum()
            ).item(),
            flicker=self._flicker / self._steady if self._steady else math.nan,
            path=steps.norm(dim=1).nanmean().item() / STRIDE,
            direction=direction_of(steps),
            asked_color=self._right["color"] / total if asked else math.nan,
            asked_shape=self._right["shape"] / total if asked else math.nan,
            asked_field=self._right["field"] / total if asked else math.nan,
            asked_motion=_share([heading(*step) for step in steps.tolist()], asked.motion)
            if asked
            else math.nan,
        )
        curves = {"hue_drift": hue_off, "field_drift": field_off, "pattern_drift": of["pattern"]}
        return drift, {name: _bins(curve) for name, curve in curves.items()}


def measure(frames: Tensor, asked: Scene | None = None, opening: int = CLIP_FRAMES) -> Drift:
    """Measure a video.

    Args:
        frames: [T, 3, 64, 64] in [0, 1].
        asked: As in ``DriftMeter``.
        opening: As in ``DriftMeter``.

    Returns:
        The measures; frames without a sprite are left out of the sprite's drifts and counted as
        wrong in the shares.
    """
    return _measured(frames, asked, opening)[0]


def over_time(frames: Tensor, opening: int = CLIP_FRAMES) -> Curves:
    """Return how far a video has strayed by when.

    Args:
        frames: [T, 3, 64, 64] in [0, 1].
        opening: As in ``DriftMeter``.

    Returns:
        By measure (``hue_drift``, ``field_drift``, ``pattern_drift``, as in ``Drift``) the bins, each its first
        frame, its last frame and its mean; bins in which nothing could be measured are left out.
    """
    return _measured(frames, None, opening)[1]


def _measured(frames: Tensor, asked: Scene | None, opening: int) -> tuple[Drift, Curves]:
    meter = DriftMeter(asked, opening)
    for piece in frames.split(PIECE):
        meter.extend(piece)
    return meter.end()


def _bins(curve: Tensor) -> list[list[float]]:
    count = min(BINS, len(curve))
    edges = [round(i * len(curve) / count) for i in range(count + 1)]
    return [
        [first, last - 1, curve[first:last].nanmean().item()]
        for first, last in pairwise(edges)
        if not curve[first:last].isnan().all()
    ]


def direction_of(steps: Tensor) -> str | None:
    """The motion word nearest to the mean of steps [N, 2] in pixels; None below half a pixel a step."""
    return heading(*steps.nanmean(0).tolist()) if len(steps) else None


def _share(names: list[str | None], asked: str) -> float:
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


def _bare(mask: Tensor) -> Tensor:
    """Where no sprite is, [N, 1, 64, 64]."""
    return (mask < 0.02)[:, None]


def _plate(frames: Tensor, mask: Tensor) -> Tensor:
    """Each pixel's median over the frames that leave it bare, [3, 64, 64]; NaN where none does."""
    return torch.where(_bare(mask), frames, math.nan).nanmedian(0).values


def _pattern_off(frames: Tensor, mask: Tensor, plate: Tensor) -> Tensor:
    return torch.where(_bare(mask), (frames - plate).abs(), math.nan)


def _flicker(frames: Tensor, mask: Tensor) -> Tensor:
    bare = _bare(torch.maximum(mask[1:], mask[:-1]))
    return torch.where(bare, frames.diff(dim=0).abs(), math.nan)
