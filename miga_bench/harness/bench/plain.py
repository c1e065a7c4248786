"""Our MIGA against the loop as one would first write it (``plain_loop.py``): same weights, same video."""

from __future__ import annotations

import time
from typing import Any

import torch

from miga_bench.backbones import load_backbone
from miga_bench.harness.bench.common import (
    MODEL,
    Part,
    Row,
    Say,
    apart,
    maker,
    prompts_of,
    usable_cores,
)
from miga_bench.harness.bench.plain_loop import PlainLoop
from miga_bench.harness.bench.rounds import in_turns
from miga_bench.sampling import CounterNoise, resolve

# MIGA as in the paper with half its steps.
HALF = {"steps": 27, "stage2_steps": 5, "renoise": 5, "reflection": "off"}
LEAST = 1.25
MOST_APART = 1e-3


def measure(say: Say, repeats: int) -> Part:
    """Time both in turns: with all cores by wall time, and on one thread by processor time."""
    backbone = load_backbone(MODEL, device="cpu")
    denoiser: Any = backbone.denoiser
    prompts, noise = prompts_of(backbone), CounterNoise(0, backbone.latent_shape)
    length = backbone.window + backbone.window // 2
    plain = PlainLoop(
        resolve("miga", backbone, overrides=HALF), backbone, denoiser.transformer, prompts, noise
    )
    ours = maker(backbone, "miga", HALF, length, prompts)
    works = {"plain": lambda: plain.sample(length), "ours": ours}
    say("warm-up: both once, and whether they make the same")
    difference = apart(ours(), plain.sample(length))
    # One window at a time leaves cores idle that a batch fills: with all of them the gain is another.
    cores = usable_cores()
    say(f"{repeats} rounds on {cores} cores")
    torch.set_num_threads(cores)
    together = in_turns(works, repeats, time.perf_counter)
    torch.set_num_threads(1)
    say(f"{repeats} rounds on one thread")
    alone = in_turns(works, repeats)
    gain, gain_alone = (taken["plain"].over(taken["ours"]) for taken in (together, alone))
    return Part(
        {
            "cores": cores,
            "speedup": gain.document(),
            "speedup_one_thread": gain_alone.document(),
            "seconds": {name: taken.document() for name, taken in together.items()},
            "processor_seconds_one_thread": {n: taken.document() for n, taken in alone.items()},
            "relative_difference": difference,
        },
        [
            Row(f"plain loop / ours, {cores} cores, wall", *gain.text(".2f"), f">= {LEAST}"),
            Row("plain loop / ours, one thread, processor", *gain_alone.text(".2f")),
            Row(
                "same latents: largest relative difference",
                f"{difference:.1e}",
                target=f"<= {MOST_APART:g}",
            ),
        ],
    )
