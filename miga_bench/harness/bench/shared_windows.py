"""What is gained and lost on this machine when several processes share a video's windows.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m miga_bench.harness.bench.shared_windows [ROUNDS]

One process and all of them make the same video in turns, so that ratios are of one run. The video is made
with the embedded model, and with a denoiser that does nothing, which leaves what is not shared: the
sampler, and the exchange. The last line is one JSON document. By wall time: processes wait for each other.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.harness.bench import REPEATS
from miga_bench.harness.bench.common import MODEL, SMALL, maker, prompts_of
from miga_bench.harness.bench.rounds import Spread
from miga_bench.harness.provenance import hardware, versions
from miga_bench.harness.window_parallel import WindowParallel
from miga_bench.sampling.base import PassReport, PromptSchedule

LATENTS = 42


def measure_here(rounds: int) -> dict[str, Any]:
    """Measure with all processes of the process group; rank 0 returns the document, others nothing."""
    backbone = load_backbone(MODEL)
    prompts = prompts_of(backbone)  # before the denoiser is another
    maker(backbone, "short", {"steps": 4}, backbone.window, prompts)()  # warm-up
    everybody = WindowParallel()
    denoisers = {"model": backbone.denoiser, "nothing": _nothing}
    seconds: dict[tuple[str, str], list[float]] = {}
    videos: dict[tuple[str, str], Tensor] = {}
    for _ in range(rounds):
        for kind, denoiser in denoisers.items():
            backbone.denoiser = denoiser
            for who in ("alone", "together"):
                dist.barrier()
                if who == "alone" and everybody.rank:
                    continue  # to the next barrier
                team = everybody.sharing(backbone) if who == "together" else nullcontext()
                with team:
                    videos[kind, who], windows, taken = _passes(backbone, prompts)
                seconds.setdefault((kind, who), []).append(taken)
    if everybody.rank:
        return {}
    alone, together, bare, bare_together = (
        Spread(tuple(seconds[kind, who]))
        for kind in ("model", "nothing")
        for who in ("alone", "together")
    )
    difference = videos["model", "alone"] - videos["model", "together"]
    return {
        "processes": everybody.size,
        "threads": torch.get_num_threads(),
        "backbone": MODEL,
        "settings": SMALL,
        "windows_per_pass": windows,
        "pass_seconds": {"alone": alone.document(), "together": together.document()},
        "speedup": alone.over(together).document(),
        "bare_pass_seconds": {"alone": bare.document(), "together": bare_together.document()},
        "exchange_seconds": float(f"{bare_together.median - bare.median:.4g}"),
        "largest_difference": float(difference.abs().max()),
        "hardware": hardware(backbone.device),
        "versions": versions(),
    }


def _nothing(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """Denoise nothing: a velocity of zero."""
    return torch.zeros_like(latents)


def _passes(backbone: Backbone, prompts: PromptSchedule) -> tuple[Tensor, int, float]:
    """Return a video ``[F, C, H, W]``, the windows of its fullest passes, their median seconds."""
    passes: list[tuple[int, float]] = []
    windows, last = 0, time.perf_counter()

    def note(report: PassReport) -> None:
        nonlocal windows, last
        now = time.perf_counter()
        passes.append((report.windows - windows, now - last))
        windows, last = report.windows, now

    video = maker(backbone, "miga", SMALL, LATENTS, prompts, note)()
    most = max(windows for windows, _ in passes)
    full = tuple(taken for windows, taken in passes if windows == most)
    return video, most, Spread(full).median


def main() -> None:
    """Measure and print the document."""
    dist.init_process_group()
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    document = measure_here(int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS)
    if document:
        print(json.dumps(document))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
