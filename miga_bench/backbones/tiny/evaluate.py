"""Score a tiny model on held-out captions: ``python -m miga_bench.backbones.tiny.evaluate``.

One short clip per caption (81 frames of the Wan family, 16 of VideoCrafter2's), read by the world's
own reader. The last line printed is one JSON document.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones import load_backbone
from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.drift import Drift, measure
from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.backbones.tiny.reader import read
from miga_bench.sampling import METHODS, CounterNoise, resolve
from miga_bench.sampling.base import PromptSchedule

SHEET_ROWS, SHEET_COLUMNS = 24, 9
LEVEL = ("right", "left")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Score a tiny model on held-out captions.")
    parser.add_argument("--backbone", default="tiny-wan", help="its name, or the weights' folder")
    parser.add_argument("--prompts", type=int, default=100, help="how many captions")
    parser.add_argument("--steps", help="denoising steps (the preset's)")
    parser.add_argument("--guidance", help="guidance scale (the preset's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first clip's noise")
    parser.add_argument("--sheet", type=Path, help="also write frames over time, a PNG")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    backbone: Any = load_backbone(options.backbone, device="cpu", height=64, width=64)
    given = {"steps": options.steps, "guidance_scale": options.guidance}
    overrides = {name: value for name, value in given.items() if value is not None}
    prompts = held_out_prompts(options.prompts)
    asked = [parse_caption(prompt) for prompt in prompts]
    scores, rows = [], []
    for frames, scene in zip(clips(backbone, prompts, overrides, options.seed), asked, strict=True):
        scores.append(measure(frames, scene))
        rows.append(frames[:: max(1, len(frames) // SHEET_COLUMNS)])
        if len(scores) % 10 == 0:
            print(f"{len(scores)} of {len(prompts)} clips", file=sys.stderr, flush=True)
    if options.sheet:
        write_sheet(rows[:SHEET_ROWS], options.sheet)
    settings = resolve("short", backbone, "tiny", overrides)
    report = {
        "backbone": options.backbone,
        "prompts": len(prompts),
        "steps": settings.steps,
        "guidance": settings.guidance_scale,
        "seed": options.seed,
        "clips": summary(scores),
        "direction_right": share(
            score.direction == scene.motion for score, scene in zip(scores, asked, strict=True)
        ),
        "line_right": share(
            score.direction is not None and (score.direction in LEVEL) == (scene.motion in LEVEL)
            for score, scene in zip(scores, asked, strict=True)
        ),
        "autoencoder": reconstruction(backbone),
    }
    print(json.dumps(report))
    return 0


@torch.inference_mode()
def clips(
    backbone: Any, prompts: Sequence[str], overrides: dict[str, str], seed: int = 0
) -> Iterator[Tensor]:
    """Yield one short clip ``[T, 3, 64, 64]`` in [0, 1] per prompt.

    Args:
        backbone: A tiny model.
        prompts: Captions.
        overrides: Settings other than the ``tiny`` preset's.
        seed: Of the first clip's noise; the next ones count on.
    """
    short = METHODS["short"](resolve("short", backbone, "tiny", overrides))
    for number, prompt in enumerate(prompts):
        text, nothing = backbone.encode([prompt]), backbone.encode([backbone.negative_prompt])
        noise = CounterNoise(seed + number, backbone.latent_shape, backbone.device)
        schedule = PromptSchedule(text, nothing, (0,))
        latents = list(short.stream(backbone, schedule, noise, backbone.window))
        yield backbone.decoder().push(torch.stack(latents))


def share(right: Iterable[bool]) -> float:
    """Share of what is right, [0, 1]."""
    found = list(right)
    return sum(found) / len(found)


def summary(scores: list[Drift]) -> dict[str, float]:
    """Mean of every number over the videos where it could be measured."""
    columns: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.as_dict().items():
            if isinstance(value, (int, float)):
                columns.setdefault(name, []).append(value)
    return {name: round(sum(values) / len(values), 4) for name, values in columns.items()}


@torch.no_grad()
def reconstruction(backbone: Any, clips: int = 20, seed: int = 1) -> dict[str, float]:
    """What the autoencoder keeps of ``clips`` true clips, as the reader sees it.

    Returns:
        Shares of frames read right after decoding, the mean absolute error of pixels in [0, 1] and
        the peak signal-to-noise ratio in dB.
    """
    rng = random.Random(seed)
    right = {"shape": 0, "color": 0, "field": 0, "size": 0, "place": 0}
    frames, error, square = 0, 0.0, 0.0
    length = backbone.frames_of(backbone.window)
    for prompt in held_out_prompts(clips, seed):
        true = world.render(world.draw_look(parse_caption(prompt), rng), length)
        again = backbone.decoder().push(backbone.encoder().push(true))
        error += (again - true).abs().mean().item()
        square += (again - true).square().mean().item()
        before: Any = read(true)
        after: Any = read(again)
        for name in ("shape", "color", "field", "size"):
            pairs = zip(getattr(before, name), getattr(after, name), strict=True)
            right[name] += sum(a == b for a, b in pairs)
        off = (after.place - before.place + 32) % 64 - 32
        right["place"] += int((off.norm(dim=1) < 1.5).sum())
        frames += len(true)
    shares = {name: round(count / frames, 4) for name, count in right.items()}
    psnr = round(-10 * math.log10(square / clips), 2)
    return {**shares, "l1": round(error / clips, 4), "psnr": psnr}


def write_sheet(rows: list[Tensor], path: Path) -> None:
    """Write videos [T, 3, H, W] in [0, 1] as one picture: a row each, time to the right."""
    from PIL import Image

    strips = [torch.cat(list(torch.nn.functional.pad(row, (1, 1, 1, 1))), 2) for row in rows]
    pixels = (torch.cat(strips, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    sys.exit(main())
