"""A judge for narratives of the embedded world that does not guess: frames are read back, then answered.

It has the shape of a judge in `miga_bench.metrics.narrlv.judge` (frames and a question in, "yes" or "no"
out) and understands the questions that `suite` beside it writes, nothing else. Not being drawn from a
model, its answers need one vote and no seed. Textures and patterns cannot be read, so nobody asks.

What a story's part lasts is at least `HOLD` frames in a row; shorter runs (a cross-fade, a frame misread)
neither tell anything nor interrupt what was told.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.tiny import reader
from miga_bench.backbones.tiny.grammar import COLORS, MOTIONS, SHAPES, SIZES
from miga_bench.backbones.tiny.reader import hue_difference, read, steps_of
from miga_bench.backbones.tiny.world import HEADING, HUES, RADIUS, SIDE, STRIDE, heading
from miga_bench.errors import UserError

HOLD = 8  # frames: half a second, as long as the world's cross-fades
_BAD_SHARE = 0.25  # of frames; cross-fades of a story told in 32 frames an atom stay below it
_HUE_SLACK = 10.0  # degrees beyond a name's range
_FIRST_RULES = "d04f5e4cde136e75"
_CHUNK = 256  # frames read at once
_MOST_SPRITE = 1.5 * math.pi * RADIUS["large"][1] ** 2 / SIDE**2  # of the picture

_COLOR, _SHAPE, _SIZE, _MOTION = ("|".join(v) for v in (COLORS, SHAPES, SIZES, MOTIONS))
_WHAT = rf"(?P<what>field|{_SHAPE})"
_VALUE = rf"{_COLOR}|{_SIZE}|{_MOTION}"
_QUESTIONS = {
    "scene": rf"(?:Does the scene take place on a|Is there a) (?P<field>{_COLOR}) field\?",
    "target": rf"Does the scene feature a (?P<shape>{_SHAPE})\?",
    "layout": rf"Is there a (?P<color>{_COLOR}) (?P<shape>{_SHAPE}) on a (?P<field>{_COLOR}) field\?",
    "segment": rf"Does the video contain any segments where the {_WHAT} (?:is|moves) (?P<value>{_VALUE})\?",
    "change": rf"Does the {_WHAT} (?:turn from|change its motion from) (?P<first>{_VALUE}) "
    rf"to (?P<then>{_VALUE}) over time\?",
    "broken": rf"Does the {_WHAT} undergo abnormal deformation over time\?",
}


def understands(question: str) -> bool:
    """Whether the judge has an answer to a question."""
    return any(re.fullmatch(pattern, question) for pattern in _QUESTIONS.values())


def changed_rules() -> dict[str, str]:
    """Return the hash of what decides the answers; nothing while that is what it was before this was told."""
    own = (HOLD, _BAD_SHARE, _HUE_SLACK, _MOST_SPRITE)
    told = repr((own, reader.THRESHOLDS, SIDE, STRIDE, HUES, RADIUS, HEADING))
    rules = hashlib.sha256(told.encode()).hexdigest()[:16]
    return {} if rules == _FIRST_RULES else {"rules": rules}


@dataclass(frozen=True)
class _Seen:
    """What N frames show: names by attribute, N each, None where there is none; and a sound field."""

    names: dict[str, list[str | None]]
    field_is_sound: list[bool]


class ReaderJudge:
    """Answers by reading every frame it needs; see the module."""

    concurrency = 1

    def __init__(self) -> None:
        self._last: tuple[Tensor, _Seen] | None = None

    def frames(self, total: int, category: str) -> Sequence[int]:
        """Return all frames, which are read once for all questions: motion needs neighbors."""
        return range(total)

    def __call__(self, frames: Tensor, question: str, seed: int = 0) -> str:
        """Answer a question.

        Args:
            frames: uint8 ``[N, 3, 64, 64]``, those it asked for.
            question: One that `suite` writes.
            seed: Not needed.

        Returns:
            "yes" or "no".

        Raises:
            UserError: The question is another, or the frames are of another size.
        """
        if frames.shape[1:] != (3, SIDE, SIDE):
            raise UserError(
                f"frames of shape {tuple(frames.shape)}; the embedded world's are [N, 3, {SIDE}, {SIDE}]"
            )
        for kind, pattern in _QUESTIONS.items():
            if match := re.fullmatch(pattern, question):
                said = match.groupdict()
                return "yes" if _ANSWERS[kind](self._read(frames), said) else "no"
        raise UserError(
            f"question {question!r} is not understood; this judge answers the embedded world's suite only"
        )

    def provenance(self) -> dict[str, Any]:
        """Return what shapes its answers."""
        return {
            "judge": "embedded world's reader",
            "hold": HOLD,
            "bad_share": _BAD_SHARE,
            **changed_rules(),
        }

    def _read(self, frames: Tensor) -> _Seen:
        """Read frames once: a story's questions come with the same tensor."""
        if self._last is None or self._last[0] is not frames:
            self._last = frames, _read(frames)
        return self._last[1]


def _read(frames: Tensor) -> _Seen:
    names: dict[str, list[str | None]] = {"shape": [], "color": [], "size": [], "field": []}
    sound: list[bool] = []
    places = []
    for part in frames.split(_CHUNK):
        reading = read(part.float() / 255)
        for name, values in names.items():
            values += getattr(reading, name)
        places.append(reading.place)
        bright = (reading.mask > 0.5).float().mean((1, 2)).tolist()
        hues = reading.field_hue.tolist()
        sound += [b <= _MOST_SPRITE and _named(h) for b, h in zip(bright, hues, strict=True)]
    names["motion"] = [heading(*step) for step in steps_of(torch.cat(places)).tolist()]
    # the last frames have no later one to be held against
    names["motion"] += [None] * (len(frames) - len(names["motion"]))
    return _Seen(names, sound)


def _named(hue: float) -> bool:
    """Whether a hue in degrees is about one of the colors rather than between two."""
    return any(abs(hue_difference(hue, h)) <= half + _HUE_SLACK for h, half in HUES.values())


def _parts(seen: _Seen, what: str, value: str) -> list[str]:
    """What is told in order: the values of the attribute that has this value, each held long enough.

    Args:
        seen: The frames.
        what: "field" or the shape that must be there.
        value: Picks the attribute: field color, or the target's color, size or motion.
    """
    if what == "field":
        names = seen.names["field"]
    else:
        attribute = next(
            name
            for name, values in (("color", COLORS), ("size", SIZES), ("motion", MOTIONS))
            if value in values
        )
        there = zip(seen.names["shape"], seen.names[attribute], strict=True)
        names = [name if shape == what else None for shape, name in there]
    runs = [(name, len(list(run))) for name, run in itertools.groupby(names)]
    held = [name for name, length in runs if name is not None and length >= HOLD]
    return [name for name, _ in itertools.groupby(held)]


def _is_opening(seen: _Seen, said: dict[str, str]) -> bool:
    return all(seen.names[name][0] == value for name, value in said.items())


def _has_segment(seen: _Seen, said: dict[str, str]) -> bool:
    return said["value"] in _parts(seen, said["what"], said["value"])


def _changes(seen: _Seen, said: dict[str, str]) -> bool:
    parts = _parts(seen, said["what"], said["first"])
    return (said["first"], said["then"]) in itertools.pairwise(parts)


def _is_broken(seen: _Seen, said: dict[str, str]) -> bool:
    if said["what"] == "field":
        bad = [not sound for sound in seen.field_is_sound]
    else:
        bad = [shape != said["what"] for shape in seen.names["shape"]]
    return sum(bad) > _BAD_SHARE * len(bad)


_ANSWERS: dict[str, Callable[[_Seen, dict[str, str]], bool]] = {
    "scene": _is_opening,
    "target": _is_opening,
    "layout": _is_opening,
    "segment": _has_segment,
    "change": _changes,
    "broken": _is_broken,
}
