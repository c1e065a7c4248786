"""What the embedded scores see: ``python -m miga_bench.backbones.tiny.score_checks [VIDEO ...]``.

On clips of held-out captions that are rendered, so that the truth is known: how consistency falls
when something changes, and how far midpoints are from the true ones. Of videos of the embedded
model, the exact reader's drift beside the score. The last line printed is one JSON document.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.drift import measure as measure_drift
from miga_bench.backbones.tiny.grammar import (
    PATTERNS,
    SHAPES,
    TEXTURES,
    held_out_prompts,
    parse_caption,
)
from miga_bench.backbones.tiny.world import Look
from miga_bench.media import VideoWriter, read_video
from miga_bench.metrics.functional.consistency import feature_consistency
from miga_bench.metrics.functional.flickering import absolute_difference
from miga_bench.metrics.networks.flow import FlowInterpolator
from miga_bench.metrics.networks.tiny import WEIGHTS, TinyEncoder

Change = Callable[[Look], Look]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Show what the embedded scores see.")
    parser.add_argument("videos", type=Path, nargs="*", help="of the embedded model")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the encoder's")
    parser.add_argument("--clips", type=int, default=40, help="how many captions")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    encoder = TinyEncoder(options.weights)
    report = {
        "weights": str(options.weights),
        "clips": options.clips,
        "consistency": consistency(encoder, options.clips),
        "midpoints": {gap: midpoints(options.clips, gap) for gap in (2, 6, 12)},
        "videos": {str(video): beside_drift(encoder, video) for video in options.videos},
    }
    print(json.dumps(report))
    return 0


def _turned(name: str, degrees: float) -> Change:
    return lambda look: replace(look, **{name: (getattr(look, name) + degrees) % 360})


def _next(name: str, names: tuple[str, ...]) -> str:
    return names[(names.index(name) + 1) % len(names)]


def _shape(look: Look) -> Look:
    return replace(look, shape=_next(look.shape, SHAPES))


def _texture(look: Look) -> Look:
    kind = _next(look.texture.kind, TEXTURES)
    return replace(look, texture=replace(look.texture, kind=kind))


def _pattern(look: Look) -> Look:
    kind = _next(look.pattern.kind, PATTERNS)
    return replace(look, pattern=replace(look.pattern, kind=kind))


HUE_SHIFTS = (10, 20, 40, 80)
# What happens to a clip halfway, by its name in the report.
CHANGES: dict[str, Change] = {
    **{f"hue {degrees}": _turned("hue", degrees) for degrees in HUE_SHIFTS},
    "shape": _shape,
    "radius x 1.3": lambda look: replace(look, radius=look.radius * 1.3),
    "texture": _texture,
    "field hue 20": _turned("field_hue", 20),
    "field hue 80": _turned("field_hue", 80),
    "pattern": _pattern,
}


def looks(count: int, seed: int = 0) -> list[Look]:
    """Draw the looks of held-out captions."""
    rng = random.Random(f"{seed} score checks")
    return [world.draw_look(parse_caption(p), rng) for p in held_out_prompts(count, seed)]


def frames(look: Look, times: range) -> Tensor:
    """Render uint8 frames ``[T, 3, 64, 64]`` at these times."""
    shown = [world.render(look, 1, time) for time in times]
    return (torch.cat(shown) * 255).round().to(torch.uint8)


def change_scores(encoder: TinyEncoder, look: Look) -> dict[str, float]:
    """Return the consistency of one moving clip of 81 frames, for every change halfway.

    Returns:
        By the name of the change; ``nothing`` without one, ``codec`` without one after H.264 at the
        project's own quality.
    """
    half = world.CLIP_FRAMES // 2
    clip = frames(look, range(world.CLIP_FRAMES))
    features = encoder(clip)
    scores = {
        "nothing": feature_consistency(features).item(),
        "codec": feature_consistency(encoder(recode(clip))).item(),
    }
    for name, change in CHANGES.items():
        after = encoder(frames(change(look), range(half, world.CLIP_FRAMES)))
        scores[name] = feature_consistency(torch.cat([features[:half], after])).item()
    return scores


def consistency(encoder: TinyEncoder, clips: int, seed: int = 0) -> dict[str, object]:
    """Score clips of held-out captions, with and without changes.

    Returns:
        ``score``: the mean by change. ``below``: the share of clips whose score is below that of
        the same clip without the change. ``falls``: the share whose score is below that of the next
        smaller shift of hue, by shift. ``worst``: the lowest score of a clip without a change.
        ``unrelated``: the mean cosine of the first frames of two captions.
    """
    chosen = looks(clips, seed)
    rows = [change_scores(encoder, look) for look in chosen]
    first = encoder(torch.cat([frames(look, range(1)) for look in chosen]))
    cosines = (first @ first.T)[~torch.eye(len(first), dtype=torch.bool)]
    below = {name: [float(row[name] < row["nothing"]) for row in rows] for name in CHANGES}
    return {
        "score": {name: _mean([row[name] for row in rows]) for name in rows[0]},
        "below": {name: _mean(shares) for name, shares in below.items()},
        "falls": {
            f"hue {more}": _mean([float(row[f"hue {more}"] < row[f"hue {less}"]) for row in rows])
            for less, more in itertools.pairwise(HUE_SHIFTS)
        },
        "worst": round(min(row["nothing"] for row in rows), 4),
        "unrelated": round(cosines.mean().item(), 4),
    }


def midpoints(clips: int, gap: int) -> dict[str, dict[str, float]]:
    """Hold predictions of the middle of two frames against the frame rendered there.

    Args:
        clips: How many captions, at three times each.
        gap: Frames between the two, even.

    Returns:
        For pairs whose subject stays inside and for those where it reaches over an edge: how many,
        and the mean absolute error of 255 of flow, of the two frames' average and of the first.
    """
    sets, over = [], []
    for look in looks(clips):
        for time in (0, 20, 45):
            sets.append(frames(look, range(time, time + gap + 1, gap // 2)))
            x, y = world.positions(look, 1, time + gap // 2)[0]
            reach = 1.3 * look.radius + gap / 2 * look.speed
            over.append(min(x, y, world.SIDE - x, world.SIDE - y) < reach)
    before, truth, after = torch.stack(sets).unbind(1)
    predictions = {
        "flow": FlowInterpolator().midpoint(before, after),
        "average": ((before.int() + after.int() + 1) // 2).to(torch.uint8),
        "first": before,
    }
    edge = torch.tensor(over)
    report = {}
    for name, chosen in (("inside", ~edge), ("edge", edge)):
        errors = {
            method: round(absolute_difference(made, truth)[chosen].mean().item(), 3)
            for method, made in predictions.items()
        }
        report[name] = {"pairs": int(chosen.sum()), **errors}
    return report


def beside_drift(encoder: TinyEncoder, path: Path) -> dict[str, float | None]:
    """Return a video's consistency and, beside it, what the exact reader says of it."""
    video = torch.stack(list(read_video(path)))
    drift = measure_drift(video.float() / 255).as_dict()
    row: dict[str, float | None] = {
        "consistency": round(feature_consistency(encoder(video)).item(), 4)
    }
    for name in ("found", "hue_drift", "size_drift", "field_drift", "pattern_drift", "path"):
        value = drift[name]
        row[name] = round(value, 4) if isinstance(value, (int, float)) else None
    return row


def recode(clip: Tensor) -> Tensor:
    """Return uint8 frames ``[T, 3, 64, 64]`` after the project's own H.264."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, world.FPS) as writer:
            writer.push(clip)
        return torch.stack(list(read_video(path)))


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


if __name__ == "__main__":
    sys.exit(main())
