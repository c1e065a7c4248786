"""Time that samplers spend outside the denoiser, on a random Wan of 100M parameters, one thread.

Without guidance, so that a window is one evaluation and the share is largest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from miga_bench.backbones import load_backbone
from miga_bench.harness.bench.common import Part, Row, Say, TimeMeter, maker, prompts_of
from miga_bench.harness.bench.random_wan import random_wan
from miga_bench.harness.bench.rounds import Spread, seconds

MOST = 0.03
LENGTHS = {"short": 9, "fifo": 3, "miga": 9}  # latents
SETTINGS: dict[str, dict[str, Any]] = {
    "short": {"steps": 6, "guidance_scale": 1},
    "fifo": {"steps": 10, "guidance_scale": 1},
    "miga": {
        "guidance_scale": 1,
        "steps": 8,
        "zigzag": 3,
        "guidance_frames": 2,
        "stride": 4,
        "stage2_steps": 2,
        "renoise": 2,
        "reflection": "off",
    },
}


def measure(say: Say, repeats: int) -> Part:
    """Measure the share for each of three methods."""
    with tempfile.TemporaryDirectory() as folder:
        return _shares(random_wan(Path(folder)), say, repeats)


def _shares(model: Path, say: Say, repeats: int) -> Part:
    part = Part({"share_outside": {}})
    backbone = load_backbone(model, device="cpu")
    backbone.meter = meter = TimeMeter()
    prompts = prompts_of(backbone)
    say("warm-up")
    maker(backbone, "short", {"steps": 2, "guidance_scale": 1}, backbone.window, prompts)()
    for method, length in LENGTHS.items():
        say(f"{method}, {repeats} rounds")
        make = maker(backbone, method, SETTINGS[method], length, prompts)
        shares = []
        for _ in range(repeats):
            meter.seconds = 0.0
            total = seconds(make)
            shares.append(1 - meter.seconds / total)
        share = Spread(tuple(shares))
        part.document["share_outside"][method] = share.document()
        value, spread = share.text(".2%")
        part.rows.append(Row(f"outside the denoiser, {method}", value, spread, f"<= {MOST:.0%}"))
    return part
