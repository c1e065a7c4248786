"""What it gains and costs on this machine that several processes share a video's windows.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m miga_bench.harness.bench_parallel

One process and all of them make the same video in turns, so that ratios are of one run. The video is made
with the embedded model, and with a denoiser that does nothing, which leaves what is not shared: the
sampler, and the exchange. The last line is one JSON document.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.harness.provenance import hardware, versions
from miga_bench.harness.window_parallel import WindowParallel
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve
from miga_bench.sampling.base import PassReport

BACKBONE = "tiny-wan"
PROMPT = "a red circle moves right on a blue field"
# MIGA as in the paper with half its steps, so that the measurement ends in a minute or two.
HALF = {"steps": 27, "stage2_steps": 5, "renoise": 5, "reflection": "off"}
LATENTS = 70  # enough to fill the queue
ROUNDS = 3


def bench_parallel() -> dict[str, Any]:
    """Measure with all processes of the process group; rank 0 returns the document, others nothing."""
    backbone = load_backbone(BACKBONE)
    prompts = PromptSchedule(backbone.encode([PROMPT]), backbone.encode([""]))
    everybody = WindowParallel()
    denoisers = {"model": backbone.denoiser, "nothing": _nothing}
    seconds: dict[tuple[str, str], list[float]] = {}
    videos: dict[tuple[str, str], Tensor] = {}
    for _ in range(ROUNDS):
        for kind, denoiser in denoisers.items():
            backbone.denoiser = denoiser
            for who in ("alone", "together"):
                dist.barrier()
                if who == "alone" and everybody.rank:
                    continue  # to the next barrier
                team = everybody.sharing(backbone) if who == "together" else nullcontext()
                with team:
                    videos[kind, who], windows, taken = _timed(backbone, prompts)
                seconds.setdefault((kind, who), []).append(taken)
    if everybody.rank:
        return {}
    alone, together = seconds["model", "alone"], seconds["model", "together"]
    bare = [statistics.median(seconds["nothing", who]) for who in ("alone", "together")]
    difference = videos["model", "alone"] - videos["model", "together"]
    return {
        "processes": everybody.size,
        "threads": torch.get_num_threads(),
        "backbone": BACKBONE,
        "settings": HALF,
        "windows_per_pass": windows,
        "pass_seconds": {who: seconds["model", who] for who in ("alone", "together")},
        "speedup": [a / b for a, b in zip(alone, together, strict=True)],
        "bare_pass_seconds": {"alone": bare[0], "together": bare[1]},
        "exchange_seconds": bare[1] - bare[0],
        "largest_difference": float(difference.abs().max()),
        "hardware": hardware(backbone.device),
        "versions": versions(),
    }


def _nothing(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """Denoise nothing: a velocity of zero."""
    return torch.zeros_like(latents)


def _timed(backbone: Backbone, prompts: PromptSchedule) -> tuple[Tensor, int, float]:
    """Return a video ``[F, C, H, W]``, the windows of its fullest passes, their median seconds."""
    settings = resolve("miga", backbone, "paper", HALF)
    noise = CounterNoise(0, backbone.latent_shape, backbone.device)
    passes: list[tuple[int, float]] = []
    windows, last = 0, time.perf_counter()

    def note(report: PassReport) -> None:
        nonlocal windows, last
        now = time.perf_counter()
        passes.append((report.windows - windows, now - last))
        windows, last = report.windows, now

    video = METHODS["miga"](settings).sample(backbone, prompts, noise, LATENTS, note)
    most = max(windows for windows, _ in passes)
    return video, most, statistics.median(taken for windows, taken in passes if windows == most)


def main() -> None:
    """Measure and print the document."""
    dist.init_process_group()
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    document = bench_parallel()
    if document:
        print(json.dumps(document))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
