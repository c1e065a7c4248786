"""What the machinery costs on this machine: ratios, each from one run; ``make bench``."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import Backbone, Denoiser
from miga_bench.harness.plain_loop import PlainLoop
from miga_bench.harness.provenance import hardware, versions
from miga_bench.sampling import METHODS, CounterNoise, Miga, PromptSchedule, resolve

BACKBONE = "tiny-wan"
PROMPT = "a red circle moves right on a blue field"
PARTS = ("overhead", "plain", "memory", "startup")
REPEATS = 3
# MIGA as in the paper with half its steps, so that the measurement ends in a minute or two.
HALF = {"steps": 27, "stage2_steps": 5, "renoise": 5, "reflection": "off"}
# Few steps, so that thousands of frames end soon; what is held in memory does not depend on them.
BRIEF = ("steps=12", "stage2_steps=2", "renoise=2", "reflection=off", "guidance_scale=1")


def bench(only: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the chosen parts, print a table, return the document for the last line."""
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": overhead,
        "plain": against_plain_loop,
        "memory": memory,
        "startup": startup,
    }
    document: dict[str, Any] = {"hardware": hardware("cpu"), "versions": versions()}
    table = Table("measurement", "value", "target", title="miga-bench bench")
    log = Console(stderr=True, highlight=False)
    for name in only or PARTS:
        log.print(f"measuring {name} ...")
        document[name] = parts[name]()
        for row in document[name].pop("table"):
            log.print("  {}: {}".format(*row))
            table.add_row(*row)
    Console(width=None if Console().is_terminal else 120).print(table)
    return document


@dataclass
class Timed:
    """A denoiser that counts the seconds spent in it."""

    denoiser: Denoiser
    seconds: float = 0.0
    calls: int = 0

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Call the denoiser and add its time."""
        start = time.process_time()
        out = self.denoiser(latents, timesteps, text)
        self.seconds += time.process_time() - start
        self.calls += 1
        return out


def _prompts(backbone: Backbone) -> PromptSchedule:
    return PromptSchedule(backbone.encode([PROMPT]), backbone.encode([""]))


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return the seconds of processor time a piece of work takes.

    With one thread that is its wall time on an idle machine, and hardly moves on a busy one.
    """
    start = clock()
    work()
    return clock() - start


def overhead() -> dict[str, Any]:
    """Time of a sampler over the time of its denoiser calls, per method."""
    backbone = load_backbone(BACKBONE, device="cpu")
    noise = CounterNoise(0, backbone.latent_shape)
    prompts, ratios = _prompts(backbone), {}
    timed = Timed(backbone.denoiser)
    backbone.denoiser = timed
    for method in ("short", "fifo", "miga"):
        length = backbone.window if method == "short" else 2 * backbone.window
        overrides = HALF if method == "miga" else {"steps": HALF["steps"]}
        sampler = METHODS[method](resolve(method, backbone, overrides=overrides))
        runs = []
        for _ in range(REPEATS):
            timed.seconds = 0.0
            total = _seconds(partial(sampler.sample, backbone, prompts, noise, length))
            runs.append(total / timed.seconds)
        ratios[method] = round(statistics.median(runs), 4)
    rows = [
        (f"{m}: sampler / its denoiser calls", f"{r:.3f}", "<= 1.10") for m, r in ratios.items()
    ]
    return {"ratio": ratios, "table": rows}


def against_plain_loop() -> dict[str, Any]:
    """Time of the plain loop over ours on the same video, and what torch.compile adds."""
    backbone = load_backbone(BACKBONE, device="cpu")
    denoiser: Any = backbone.denoiser
    settings = resolve("miga", backbone, overrides=HALF)
    prompts, noise = _prompts(backbone), CounterNoise(0, backbone.latent_shape)
    length = 2 * backbone.window
    sampler = Miga(settings)
    plain = PlainLoop(settings, backbone, denoiser.transformer, prompts, noise)

    def ours() -> Tensor:
        return sampler.sample(backbone, prompts, noise, length)

    reference, result = plain.sample(length), ours()  # also the warm-up
    difference = ((reference - result).abs().max() / reference.abs().max()).item()

    def pairs(clock: Callable[[], float]) -> list[tuple[float, float]]:
        return [
            (_seconds(lambda: plain.sample(length), clock), _seconds(ours, clock))
            for _ in range(REPEATS)
        ]

    # One window at a time leaves cores idle that a batch fills: with all of them the gain is another.
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    together = pairs(time.perf_counter)
    torch.set_num_threads(1)
    times = pairs(time.process_time)
    speedup = statistics.median(p / o for p, o in together)
    single = statistics.median(p / o for p, o in times)
    eager = statistics.median(o for _, o in times)
    denoiser.network.compile(dynamic=True)
    first = _seconds(ours, time.perf_counter)
    compiled = statistics.median(_seconds(ours) for _ in range(REPEATS))
    return {
        "speedup": round(speedup, 3),
        "speedup_one_thread": round(single, 3),
        "cores": cores,
        "relative_difference": difference,
        "seconds": {
            "plain": round(statistics.median(p for p, _ in together), 2),
            "ours": round(statistics.median(o for _, o in together), 2),
        },
        "compile": {
            "speedup_over_eager": round(eager / compiled, 3),
            "seconds_to_compile": round(first - compiled, 1),
        },
        "table": [
            (f"plain loop / ours, eager, {cores} cores, wall", f"{speedup:.2f}", ">= 1.25"),
            ("plain loop / ours, eager, one thread", f"{single:.2f}", ""),
            ("same latents: largest relative difference", f"{difference:.1e}", "<= 1e-3"),
            ("torch.compile on top: eager / compiled", f"{eager / compiled:.2f}", ""),
            ("seconds spent compiling, once", f"{first - compiled:.0f}", ""),
        ],
    }


def memory() -> dict[str, Any]:
    """Peak memory of 5,000 frames over that of 500, each in a process of its own."""
    peaks = {frames: _peak_memory(frames) for frames in (500, 5000)}
    ratio = peaks[5000] / peaks[500]
    return {
        "ratio": round(ratio, 4),
        "peak_mib": {str(frames): peak for frames, peak in peaks.items()},
        "table": [("peak memory, 5,000 frames / 500", f"{ratio:.3f}", "<= 1.02")],
    }


def _peak_memory(frames: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "miga_bench", "generate", PROMPT, "--quiet"]
        command += ["--backbone", BACKBONE, "--device", "cpu", "--frames", str(frames)]
        command += ["-o", str(Path(folder) / "out.mp4")]
        for setting in BRIEF:
            command += ["--set", setting]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"generate failed: {done.stderr.strip()}")
    record = json.loads(done.stdout.splitlines()[-1])
    return float(record["cost"]["peak_memory_mib"]["process"])


def startup() -> dict[str, Any]:
    """Time to ``miga-bench --help``, beside that of an empty Python program."""

    def run(*arguments: str) -> float:
        return _seconds(
            lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True),
            time.perf_counter,
        )

    pairs = [(run("-m", "miga_bench", "--help"), run("-c", "pass")) for _ in range(10)]
    help_seconds, empty = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "help_seconds": round(help_seconds, 4),
        "python_seconds": round(empty, 4),
        "table": [
            ("miga-bench --help, seconds", f"{help_seconds:.3f}", ""),
            ("python -c pass, seconds", f"{empty:.3f}", ""),
        ],
    }
