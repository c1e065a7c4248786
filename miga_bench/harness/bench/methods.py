"""Every method on every embedded model, each in a process of its own: seconds, evaluations, memory.

    python -m miga_bench.harness.bench.methods MODEL METHOD ROUNDS

A video one and a half clips long (``short``: one clip) with the settings of the model's default preset,
on one thread, by processor time; text and decoding are left out. Everything was warmed up by a short
clip. Rounds end early once they have taken ``PATIENCE`` seconds.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from miga_bench.backbones import EMBEDDED, load_backbone
from miga_bench.harness.bench.common import Part, Row, Say, TimeMeter, in_a_process, maker
from miga_bench.harness.bench.counts import windows_per_latent
from miga_bench.harness.bench.rounds import Spread, seconds
from miga_bench.harness.provenance import forget_peak_memory, memory_kib, peak_memory_mib
from miga_bench.sampling import METHODS, FifoSettings, MigaSettings, PassReport, resolve

PATIENCE = 10.0
MOST_OUTSIDE = 0.08
WARM_STEPS = 4


def measure(say: Say, repeats: int) -> Part:
    """Measure all methods on all embedded models."""
    part = Part({"settings": "default preset", "models": {}})
    for model in EMBEDDED:
        part.document["models"][model] = {}
        for method in METHODS:
            say(f"{method} on {model}")
            found = in_a_process("-m", __name__, model, method, str(repeats))
            part.document["models"][model][method] = found
            part.rows += _rows(f"{model}, {method}", found)
    return part


def _rows(what: str, found: dict[str, Any]) -> list[Row]:
    taken, outside = found["seconds_per_frame"], found["share_outside"]
    several = taken["rounds"] > 1
    memory = found["peak_memory_mib"]
    peak = "not known" if memory is None else f"{memory:.0f}"
    return [
        Row(
            f"{what}: seconds a frame; evaluations a frame; peak MiB",
            f"{taken['median']:.4f}; {found['nfe_per_frame']:.2f}; {peak}",
            f"{taken['min']:.4f} to {taken['max']:.4f}" if several else "",
        ),
        Row(
            f"{what}: time outside the denoiser",
            f"{outside['median']:.2%}",
            f"{outside['min']:.2%} to {outside['max']:.2%}" if several else "",
            f"<= {MOST_OUTSIDE:.0%}",
        ),
    ]


def measure_one(model: str, method: str, repeats: int) -> dict[str, Any]:
    """Measure one method on one model in this process."""
    backbone = load_backbone(model, device="cpu")
    maker(backbone, "short", {"steps": WARM_STEPS}, backbone.window)()
    loaded = memory_kib("VmRSS")
    forget_peak_memory("cpu")
    meter = TimeMeter()
    backbone.meter = meter
    last: list[PassReport] = []
    length = backbone.window if method == "short" else backbone.window + backbone.window // 2
    make = maker(backbone, method, {}, length, callback=lambda report: last.append(report))
    totals: list[float] = []
    outside: list[float] = []
    while len(totals) < repeats and sum(totals) < PATIENCE:
        meter.seconds = 0.0
        totals.append(seconds(make))
        outside.append(1 - meter.seconds / totals[-1])
    frames, cost = backbone.frames_of(length), last[-1]
    settings = resolve(method, backbone)
    found = {
        "frames": frames,
        "seconds_per_frame": Spread(tuple(totals)).times(1 / frames).document(),
        "nfe_per_frame": round(cost.nfe / frames, 4),
        "latents_denoised_per_frame": round(cost.nfe_latents / frames, 3),
        "search_windows": cost.search_windows,
        "share_outside": Spread(tuple(outside)).document(),
        "peak_memory_mib": peak_memory_mib("cpu").get("process"),
        "loaded_memory_mib": None if loaded is None else loaded / 2**10,
    }
    if isinstance(settings, FifoSettings | MigaSettings):
        found["windows_per_further_latent"] = round(windows_per_latent(settings, backbone), 4)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure_one(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
