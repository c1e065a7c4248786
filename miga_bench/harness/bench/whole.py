"""A whole ``generate``, as the command makes it by default, against a plain loop that makes its like.

Both load the model, make 300 frames of MIGA, decode and write them, with all cores, by wall time. What runs the
denoiser in ours is what the command takes at that length: PyTorch, or an export where one pays. The plain loop
(``plain_loop.py``) decodes all latents at its end.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from miga_bench.backbones import load_backbone
from miga_bench.errors import FailedError
from miga_bench.harness.bench.common import MODEL, PROMPT, Part, Row, Say, usable_cores
from miga_bench.harness.bench.plain_loop import PlainLoop
from miga_bench.harness.bench.rounds import in_turns, timed
from miga_bench.harness.generate import generate
from miga_bench.harness.request import DEFAULT_FRAMES, GenerateRequest, PromptAt
from miga_bench.media import VideoWriter, read_video
from miga_bench.sampling import CounterNoise, PromptSchedule, resolve

# the preset's MIGA but for the search, which the plain loop does not have
OVERRIDES = {"reflection": "off"}
TARGET = 3.0
MOST_APART = 0.1


def measure(say: Say, repeats: int, frames: int = DEFAULT_FRAMES) -> Part:
    """Make the video by both in turns."""
    cores = usable_cores()
    torch.set_num_threads(cores)
    try:
        with tempfile.TemporaryDirectory() as name:
            return _measure(say, repeats, frames, cores, Path(name))
    finally:
        torch.set_num_threads(1)


def _measure(say: Say, repeats: int, frames: int, cores: int, folder: Path) -> Part:
    files = {name: folder / f"{name}.mp4" for name in ("ours", "plain")}
    works = {
        "ours": lambda: _ours(files["ours"], frames),
        "plain": lambda: _plain(files["plain"], frames),
    }
    say(f"warm-up: {frames} frames by each, and whether they are the same")
    first = {name: timed(work)[0] for name, work in works.items()}
    ours, plain = (torch.stack(list(read_video(file))).float() for file in files.values())
    say(f"{repeats} rounds on {cores} cores")
    taken = in_turns(works, repeats, time.perf_counter)
    gain, difference = taken["plain"].over(taken["ours"]), float((ours - plain).abs().mean())
    return Part(
        {
            "frames": frames,
            "cores": cores,
            "speedup": gain.document(),
            "seconds": {name: spread.document() for name, spread in taken.items()},
            "first_seconds": {name: round(seconds, 2) for name, seconds in first.items()},
            "mean_difference_of_255": round(difference, 4),
        },
        [
            Row(
                f"whole generate of {frames} frames, plain / ours, {cores} cores, wall",
                *gain.text(".2f"),
                f">= {TARGET:g}",
            ),
            Row(
                "same video: mean difference of a pixel, of 255",
                f"{difference:.1e}",
                target=f"<= {MOST_APART:g}",
            ),
        ],
    )


def _ours(video: Path, frames: int) -> None:
    made = generate(
        GenerateRequest(
            [PromptAt(PROMPT)],
            video,
            backbone=MODEL,
            frames=frames,
            device="cpu",
            overrides=OVERRIDES,
            denoiser=None,
            overwrite=True,
            lossless=True,
        )
    )
    if made.error is not None:
        raise FailedError(f"generate failed: {made.error}")


@torch.inference_mode()
def _plain(video: Path, frames: int) -> None:
    backbone: Any = load_backbone(MODEL, device="cpu")
    transformer = backbone.denoiser.transformer
    settings = resolve("miga", backbone, overrides=OVERRIDES)
    prompts = PromptSchedule(backbone.encode([PROMPT]), backbone.encode([backbone.negative_prompt]))
    noise = CounterNoise(0, backbone.latent_shape)
    loop = PlainLoop(settings, backbone, transformer, prompts, noise)
    latents = loop.sample(backbone.latents_for(frames))
    with VideoWriter(video, backbone.frame_rate, lossless=True) as writer:
        writer.push(backbone.decoder().push(latents)[:frames])
