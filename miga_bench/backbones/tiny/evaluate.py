"""Score the tiny model on held-out captions: ``python -m miga_bench.backbones.tiny.evaluate``.

One clip of 21 latents (81 frames) per caption. The last line printed is one JSON document.
"""

import argparse
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.drift import Drift, measure
from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.backbones.tiny.models import WEIGHTS
from miga_bench.backbones.tiny.reader import read
from miga_bench.backbones.tiny.sample import TinyWan


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Score the tiny model on held-out captions.")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="diffusers folder")
    parser.add_argument("--prompts", type=int, default=100, help="how many captions")
    parser.add_argument("--steps", type=int, default=30, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--sheet", type=Path, help="also write frames over time, a PNG")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = TinyWan(options.weights)
    prompts = held_out_prompts(options.prompts)
    scores, rows = [], []
    for start in range(0, len(prompts), 10):
        some = prompts[start : start + 10]
        latents = model.sample(some, options.steps, options.guidance, options.seed + start)
        for prompt, clip in zip(some, latents, strict=True):
            frames = model.decode(clip[None])[0]
            scores.append(measure(frames, parse_caption(prompt)))
            rows.append(frames[::10])
        print(f"{len(scores)} of {len(prompts)} clips", file=sys.stderr, flush=True)
    if options.sheet:
        write_sheet(rows[:24], options.sheet)
    asked = [parse_caption(prompt) for prompt in prompts]
    report = {
        "weights": str(options.weights),
        "prompts": len(prompts),
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.seed,
        "clips": summary(scores),
        "direction_right": sum(
            score.direction == scene.motion for score, scene in zip(scores, asked, strict=True)
        )
        / len(prompts),
        "autoencoder": reconstruction(model),
    }
    print(json.dumps(report))
    return 0


def summary(scores: list[Drift]) -> dict[str, float]:
    """Mean of every number over the videos where it could be measured."""
    columns: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.as_dict().items():
            if isinstance(value, (int, float)):
                columns.setdefault(name, []).append(value)
    return {name: round(sum(values) / len(values), 4) for name, values in columns.items()}


@torch.no_grad()
def reconstruction(model: TinyWan, clips: int = 20, seed: int = 1) -> dict[str, float]:
    """What the autoencoder keeps of ``clips`` true clips, as the reader sees it.

    Returns:
        Shares of frames read right after decoding, the mean absolute error of pixels in [0, 1] and
        the peak signal-to-noise ratio in dB.
    """
    rng = random.Random(seed)
    right = {"shape": 0, "color": 0, "field": 0, "size": 0, "place": 0}
    frames, error, square = 0, 0.0, 0.0
    for prompt in held_out_prompts(clips, seed):
        look = world.draw_look(parse_caption(prompt), rng)
        true = world.render(look)
        clip = true.transpose(0, 1)[None] * 2 - 1
        decoded = model.vae.decode(model.vae.encode(clip).latent_dist.mean).sample
        again = (decoded[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)
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
