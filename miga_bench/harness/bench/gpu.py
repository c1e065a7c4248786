"""The public models' real size on a GPU, with random weights: seconds a window and a frame, memory.

    python -m miga_bench.harness.bench.gpu [--model NAME] [--engine NAME] [--repeats N]
    python -m miga_bench.harness.bench.gpu --prove      # no GPU: one window of each at a small size

Wan2.1-1.3B's denoiser makes 480x832 in windows of 21 latents, VideoCrafter2's 320x512 in windows of 16; in
bfloat16, which takes as long with random weights as with trained ones. A window has both halves of guidance.
Text and decoding are left out.

A frame takes ``w / p`` windows, w the windows of a further latent of an endless video (preset ``paper``,
searches left out; formula in ``bench/counts.py``), p the frames it decodes to (Wan 4, VideoCrafter2 1). So
seconds a frame are ``seconds a window * w / p``. A plain clip takes its steps times a window. Time outside
the denoiser is measured in a pass of a full queue, waiting for the GPU before and after each denoiser call:
nothing overlaps, so the share is an upper bound.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from miga_bench.backbones.base import LatentShape
from miga_bench.errors import UserError, plainly
from miga_bench.harness.bench.common import Say, TimeMeter, prompts_of
from miga_bench.harness.bench.counts import windows_per_latent
from miga_bench.harness.bench.real_size import MODELS, RandomBackbone, RealModel
from miga_bench.harness.bench.rounds import Spread, seconds
from miga_bench.harness.provenance import (
    forget_peak_memory,
    hardware,
    peak_memory_mib,
    versions,
)
from miga_bench.sampling import CounterNoise, FifoSettings, MigaSettings, resolve
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.windows import Window, fifo_windows, miga_windows, partition

ENGINES = ("eager", "compile", "graphs")
WINDOWS = (1, 4)  # in a call
METHODS = ("fifo", "miga")
REPEATS = 5
WARM_UPS = 3  # a CUDA graph is recorded in the second call
CLIP_STEPS = 50
SMALL_LATENT = (8, 8)  # of --prove


@dataclass(frozen=True)
class Anchor:
    """What somebody else has published for the same work.

    Attributes:
        model: Name in ``MODELS``.
        what: ``frame`` of FIFO, or ``clip``.
        seconds: How long it took.
        gpu: On what.
        source: Where it stands.
    """

    model: str
    what: Literal["frame", "clip"]
    seconds: float
    gpu: str
    source: str


ANCHORS = (
    Anchor(
        "videocrafter2",
        "frame",
        9.6,
        "RTX 4090",
        "a user's 16 minutes for 100 frames: github.com/jjihwan/FIFO-Diffusion_public/issues/4",
    ),
    Anchor(
        "wan2.1-1.3b",
        "clip",
        95.0,
        "H200",
        "Wan2.1 1.3B at 480P with FlashAttention 2, denoiser only, 95.21 s:"
        " hao-ai-lab.github.io/blogs/fastvideo_post_training",
    ),
)


@dataclass(frozen=True)
class Timing:
    """What a denoiser call takes.

    Attributes:
        windows: In the call.
        window: Seconds of one, by round.
        memory: Peak, MiB.
        first: Seconds of the first call, compilation included.
    """

    windows: int
    window: Spread
    memory: float
    first: float


def seconds_per_frame(window: float, windows_per_latent: float, frames_per_latent: int) -> float:
    """Return the seconds of a further frame; see the module."""
    return window * windows_per_latent / frames_per_latent


def share_outside(outside: float, window: float) -> float:
    """Return the share of time outside the denoiser, from both's seconds a window."""
    return outside / (outside + window)


def bench_gpu(
    models: Sequence[RealModel],
    engines: Sequence[str],
    repeats: int,
    device: torch.device,
    say: Say,
    windows: Sequence[int] = WINDOWS,
) -> dict[str, Any]:
    """Measure, print a table, return the document for the last line.

    Args:
        models: One after the other.
        engines: Names in ``ENGINES``.
        repeats: Timed calls, after the warm-up.
        device: A GPU; a CPU will do for small models.
        say: Hears what is being measured.
        windows: Windows in a call.
    """
    document: dict[str, Any] = {
        "hardware": hardware(str(device)),
        "versions": versions(),
        "dtype": "bfloat16",
        "preset": "paper",
        "models": {},
        "published": [asdict(anchor) for anchor in ANCHORS],
    }
    for model in models:
        document["models"][model.name] = _measure(model, engines, repeats, device, say, windows)
        _forget(device)
    _show(document)
    return document


def _measure(
    model: RealModel,
    engines: Sequence[str],
    repeats: int,
    device: torch.device,
    say: Say,
    windows: Sequence[int],
) -> dict[str, Any]:
    say(f"{model.name}: drawing weights")
    backbone = RandomBackbone(model, device)
    per_latent = {m: windows_per_latent(resolve(m, backbone), backbone) for m in METHODS}
    say(f"{model.name}: a pass of the queue of {' and '.join(METHODS)}")
    outside = {method: _outside(backbone, method) for method in METHODS}
    found: dict[str, Any] = {
        "parameters": backbone.parameters,
        "latent": [backbone.window, *backbone.latent_shape],
        "windows_per_latent": {m: round(count, 4) for m, count in per_latent.items()},
        "frames_per_latent": model.frames_per_latent,
        "outside_seconds_per_window": {m: float(f"{s:.4g}") for m, s in outside.items()},
        "engines": {},
    }
    for engine in engines:
        denoiser = _denoiser(backbone, engine)
        found["engines"][engine] = {}
        for count in windows:
            say(f"{model.name}: {engine}, {count} windows a call, {repeats} calls")
            timing = _time(backbone, denoiser, count, repeats)
            window = timing.window.median
            found["engines"][engine][str(count)] = {
                "seconds_per_window": timing.window.document(),
                "first_call_seconds": round(timing.first, 2),
                "peak_memory_mib": timing.memory,
                "seconds_per_frame": {
                    m: seconds_per_frame(window, per_latent[m], model.frames_per_latent)
                    for m in METHODS
                },
                "clip_seconds": CLIP_STEPS * window,
                "share_outside": {m: share_outside(outside[m], window) for m in METHODS},
            }
        del denoiser
        _forget(device)
    return found


def _denoiser(backbone: RandomBackbone, engine: str) -> Any:
    """Return a denoiser of the backbone's weights: eager, compiled, or compiled into CUDA graphs."""
    denoiser = backbone.fresh_denoiser()
    if engine != "eager":
        torch._dynamo.reset()
        mode = "reduce-overhead" if engine == "graphs" else None
        denoiser.network = torch.compile(denoiser.network, mode=mode, dynamic=False)
    return denoiser


@torch.inference_mode()
def _time(backbone: RandomBackbone, denoiser: Any, windows: int, repeats: int) -> Timing:
    """Time calls of so many windows with both halves of guidance."""
    inputs = _inputs(backbone, 2 * windows)
    clock = _clock(backbone)

    def call() -> Tensor:
        out: Tensor = denoiser(*inputs)
        return out

    forget_peak_memory(backbone.device)
    first = seconds(call, clock)
    for _ in range(WARM_UPS - 1):
        call()
    taken = Spread(tuple(seconds(call, clock) for _ in range(repeats)))
    return Timing(windows, taken.times(1 / windows), _peak(backbone), first)


def _inputs(backbone: RandomBackbone, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    channels, height, width = backbone.latent_shape
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, channels, backbone.window, height, width, generator=generator)
    timesteps = torch.linspace(1000, 20, backbone.window).flip(0).expand(rows, -1).contiguous()
    text = backbone.encode(["a"] * rows)
    return latents.to(backbone.device), timesteps.to(backbone.device), text.contiguous()


def _clock(backbone: RandomBackbone) -> Callable[[], float]:
    """Return a clock that reads when the device has done what it was told."""
    if not backbone.device.startswith("cuda"):
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return read


def _peak(backbone: RandomBackbone) -> float:
    peaks = peak_memory_mib(backbone.device)
    return peaks.get("gpu", peaks.get("process", 0.0))


@torch.inference_mode()
def _outside(backbone: RandomBackbone, method: str) -> float:
    """Return the seconds outside the denoiser of a window, in a pass of a full queue."""
    settings = resolve(method, backbone, "paper")
    clock = _clock(backbone)
    backbone.meter = meter = TimeMeter(clock)
    noise = CounterNoise(0, backbone.latent_shape, backbone.device)
    denoiser = WindowDenoiser.of(settings, backbone, prompts_of(backbone), noise, None)
    backbone.meter = None
    levels, plan = full_queue(settings, backbone)
    frames = list(range(len(levels)))
    queue = Queue.fresh(noise(frames, "queue"), levels, frames, denoiser.solver)
    denoiser.batch = min(4, len(plan))
    # The first pass warms up; what one reads in the second is as long.
    for _ in range(2):
        meter.seconds = 0.0
        total = seconds(lambda: denoiser.denoise(queue, plan, "pass", in_place=False), clock)
        queue.levels = list(levels)
    return max(0.0, total - meter.seconds) / len(plan)


def full_queue(
    settings: FifoSettings | MigaSettings, backbone: RandomBackbone
) -> tuple[list[int], list[Window]]:
    """Return a full queue's levels, and the windows of a pass of it."""
    window = backbone.window
    if isinstance(settings, FifoSettings):
        context = window - window // 2 if settings.lookahead else 0
        levels = [0] * context + list(range(1, settings.steps + 1))
        return levels, fifo_windows(len(levels), window, context)
    s = settings
    exit_level = backbone.schedule(s.steps).clean + s.stage2_steps
    levels = [level for level in range(exit_level + 1, s.steps + 1) for _ in range(s.zigzag)]
    ranges = partition(len(levels), s.stride, window - s.guidance_frames, 0)
    plan = miga_windows(ranges, len(levels), window, s.guidance_frames, s.zigzag, s.guidance_reach)
    return levels, plan


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _show(document: dict[str, Any]) -> None:
    facts = document["hardware"]
    table = Table(
        Column("model", no_wrap=True),
        Column("denoiser", no_wrap=True),
        "windows a call",
        "s a window",
        "min to max",
        "FIFO, s a frame",
        "MIGA, s a frame",
        f"clip, {CLIP_STEPS} steps, s",
        "peak GiB",
        "outside",
        title=f"random weights, bfloat16, {facts.get('gpu', facts['cpu'])}",
    )
    for name, model in document["models"].items():
        for engine, counts in model["engines"].items():
            for count, found in counts.items():
                window, frame = found["seconds_per_window"], found["seconds_per_frame"]
                table.add_row(
                    name,
                    engine,
                    count,
                    f"{window['median']:.4g}",
                    f"{window['min']:.4g} to {window['max']:.4g}",
                    *(f"{frame[method]:.4g}" for method in METHODS),
                    f"{found['clip_seconds']:.4g}",
                    f"{found['peak_memory_mib'] / 2**10:.1f}",
                    f"{max(found['share_outside'].values()):.2%}",
                )
    for anchor in ANCHORS:
        taken = f"{anchor.seconds:g}"
        frame, clip = (taken, "") if anchor.what == "frame" else ("", taken)
        table.add_row(anchor.model, f"published, {anchor.gpu}", *("",) * 3, frame, "", clip, "", "")
    console = Console()
    Console(width=None if console.is_terminal else 150).print(table)


@torch.inference_mode()
def prove(models: Sequence[RealModel], say: Say) -> dict[str, Any]:
    """Run one window of each model at a small latent size on the CPU, in bfloat16, without guidance.

    Returns:
        Parameters, seconds, peak memory, and whether all numbers of the prediction were finite.
    """
    document: dict[str, Any] = {
        "hardware": hardware("cpu"),
        "versions": versions(),
        "dtype": "bfloat16",
        "proved": {},
    }
    for model in models:
        forget_peak_memory("cpu")
        say(f"{model.name}: drawing weights on the CPU")
        small = LatentShape(model.latent_shape.channels, *SMALL_LATENT)
        start = time.perf_counter()
        backbone = RandomBackbone(model, torch.device("cpu"), latent_shape=small)
        drawn = time.perf_counter() - start
        inputs = _inputs(backbone, 1)
        say(f"{model.name}: a window of {list(inputs[0].shape)}")
        start, busy = time.perf_counter(), time.process_time()
        out = backbone.denoiser(*inputs)
        taken, busy = time.perf_counter() - start, time.process_time() - busy
        finite = bool(out.isfinite().all()) and out.shape == inputs[0].shape
        document["proved"][model.name] = {
            "parameters": backbone.parameters,
            "latents": list(inputs[0].shape),
            "finite": finite,
            "seconds_to_draw_weights": round(drawn, 1),
            "seconds_per_window": round(taken, 1),
            "processor_seconds_per_window": round(busy, 1),
            "peak_memory_mib": peak_memory_mib("cpu").get("process"),
        }
        say(
            f"{model.name}: {backbone.parameters:,} parameters, {busy:.1f} s of processor time, "
            + ("finite" if finite else "NOT finite")
        )
        del backbone, inputs, out
        _forget(torch.device("cpu"))
    return document


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the options say.

    Raises:
        UserError: There is no GPU, or a number is out of range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m miga_bench.harness.bench.gpu",
        description="Real-size denoisers with random weights on a GPU.",
    )
    parser.add_argument("--model", choices=tuple(MODELS), action="append", help="only this one")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="only this one")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"timed calls ({REPEATS})")
    parser.add_argument(
        "--prove", action="store_true", help="one window of each at a small size on the CPU instead"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise UserError(f"--repeats is {options.repeats}: at least 1 call must be timed")
    log = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(what: str) -> None:
        log.print(f"{what} ...", markup=False)

    models = [MODELS[name] for name in dict.fromkeys(options.model or MODELS)]
    if options.prove:
        return prove(models, say)
    if not torch.cuda.is_available():
        raise UserError(
            "no GPU is seen, and seconds of a real-size model are measured on one: use a CUDA device, or"
            " --prove, which runs one small window of each model on the CPU"
        )
    engines = tuple(dict.fromkeys(options.engine or ENGINES))
    return bench_gpu(models, engines, options.repeats, torch.device("cuda"), say)


def main() -> None:
    """Measure; the last line is one JSON document. Exit code 2 is wrong input, or no GPU."""
    print(json.dumps(run()))


if __name__ == "__main__":
    sys.exit(plainly(main))
