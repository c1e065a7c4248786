"""What exporting gains on this machine's CPU: eager, torch.compile and ONNX Runtime side by side.

All contenders of a model are timed in turns within one process and on one thread, by the processor time that
a call takes, so that other work on the machine has little effect; ratios are of medians. Exporting, start-up
and compilation are reported apart, also in processor time. Whole videos are MIGA's, by its default settings.

    python -m miga_bench.harness.bench.export [--model NAME] [--repeats N] [--videos]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from miga_bench.backbones import BACKBONES, EMBEDDED, load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.errors import plainly
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.onnx_folder import export_onnx
from miga_bench.export.opening import compile_denoiser, open_model
from miga_bench.export.request import OnnxRequest
from miga_bench.harness.bench.common import PROMPT, apart
from miga_bench.harness.bench.random_wan import NAME as RANDOM
from miga_bench.harness.bench.random_wan import random_wan
from miga_bench.harness.bench.rounds import in_turns, timed
from miga_bench.harness.generate import generate
from miga_bench.harness.provenance import hardware, versions
from miga_bench.harness.request import GenerateRequest, PromptAt

MODELS = (*EMBEDDED, RANDOM)
WINDOWS = 4  # of a pass; with guidance a call has twice as many rows
VIDEO_WINDOWS = 2  # MIGA's default settings, and a video of so many windows


@dataclass
class Contender:
    """One way to run a denoiser.

    Attributes:
        name: In the table.
        backbone: With its denoiser.
        start_seconds: Until it can be called: loading, compiling.
        export_seconds: What comes before that, and only once.
    """

    name: str
    backbone: Backbone
    start_seconds: float
    export_seconds: float = 0.0


def bench_export(models: tuple[str, ...], repeats: int, videos: bool) -> dict[str, Any]:
    """Measure, print a table, return the document for the last line.

    Args:
        models: Names in ``MODELS``.
        repeats: Rounds of calls.
        videos: Whether to make whole videos, too.
    """
    torch.set_num_threads(1)
    log = Console(stderr=True, highlight=False)
    table = Table(
        "model", "denoiser", "rows", "seconds a call", "eager / it", "export s", "start s"
    )
    document: dict[str, Any] = {"hardware": hardware("cpu"), "versions": versions(), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            log.print(f"measuring {model} ...")
            where = random_wan(Path(folder)) if model == RANDOM else model
            contenders = _contenders(str(where), Path(folder) / f"{model}-onnx")
            measured: dict[str, Any] = {
                "start": {
                    c.name: {
                        "start_seconds": round(c.start_seconds, 2),
                        "export_seconds": round(c.export_seconds, 2),
                    }
                    for c in contenders
                },
                "calls": {
                    str(rows): _calls(contenders, rows, repeats) for rows in (1, 2 * WINDOWS)
                },
            }
            for rows, calls in measured["calls"].items():
                for c in contenders:
                    call = calls[c.name]
                    start = (f"{c.export_seconds:.1f}", f"{c.start_seconds:.1f}")
                    ratio = f"{call['ratio']:.2f}"
                    table.add_row(model, c.name, rows, f"{call['seconds']:.4f}", ratio, *start)
                    log.print(
                        f"  {c.name}, {rows} rows: {call['seconds']:.4f} s, {ratio} times as fast"
                    )
            if videos and model in BACKBONES:
                measured["videos"] = _videos(contenders, Path(folder))
                for name, video in measured["videos"].items():
                    rows, ratio = f"video of {video['frames']}", f"{video['ratio']:.2f}"
                    pays = video["pays_from"]
                    table.add_row(model, name, rows, f"{video['seconds']:.1f}", ratio, "", "")
                    if name != "eager":
                        log.print(
                            f"  {name}, {rows} frames: {ratio} times as fast; pays from"
                            f" {'no number' if pays is None else pays} of evaluations on"
                        )
            document["models"][model] = measured
    Console(width=None if Console().is_terminal else 120).print(table)
    return document


def _contenders(where: str, folder: Path) -> list[Contender]:
    """Return all ways to run a backbone's denoiser, ready to be called."""
    loading, eager = timed(lambda: load_backbone(where, device="cpu"), _worked)
    found = [Contender("eager", eager, loading)]

    compiled = copy.copy(eager)
    compiled.denoiser = copy.deepcopy(eager.denoiser)
    compile_denoiser(compiled)
    inputs = [_inputs(eager, rows) for rows in (1, 2 * WINDOWS)]
    with torch.inference_mode():
        compiling, _ = timed(lambda: [compiled.denoiser(*given) for given in inputs], _worked)
    found.append(Contender("compile", compiled, loading + compiling))

    exporting, _ = timed(lambda: export_onnx(OnnxRequest(where, folder)), _worked)
    choice = DenoiserChoice("onnx", folder)
    opening, exported = timed(lambda: open_model(where, choice, device="cpu"), _worked)
    found.append(Contender("onnx", exported, opening, exporting))
    return found


def _worked() -> float:
    """Return the processor seconds of this process and, for compilers, its children so far."""
    return sum(os.times()[:4])


def _inputs(backbone: Backbone, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = backbone.window
    channels, height, width = backbone.latent_shape
    latents = torch.randn(rows, channels, frames, height, width, generator=generator)
    timesteps = torch.rand(rows, frames, generator=generator) * 1000
    text = backbone.encode([PROMPT]).expand(rows, -1, -1)
    return latents, timesteps, text


def _calls(contenders: list[Contender], rows: int, repeats: int) -> dict[str, Any]:
    """Time calls of so many rows in turns."""
    inputs = _inputs(contenders[0].backbone, rows)
    with torch.inference_mode():
        wanted = contenders[0].backbone.denoiser(*inputs)
        away = {c.name: apart(c.backbone.denoiser(*inputs), wanted) for c in contenders}
        works = {c.name: partial(c.backbone.denoiser, *inputs) for c in contenders}
        times = in_turns(works, repeats)
    return {
        name: {
            "seconds": round(taken.median, 5),
            "ratio": round(times["eager"].median / taken.median, 3),
            "relative_difference": away[name],
        }
        for name, taken in times.items()
    }


def _videos(contenders: list[Contender], folder: Path) -> dict[str, Any]:
    """Make a video by each, text, decoding and file included, once to warm up and once timed.

    ``pays_from`` is the number of denoiser evaluations from which a contender finishes before eager PyTorch,
    exporting, loading and compiling included. None is never.
    """
    frames = contenders[0].backbone.frames_of(VIDEO_WINDOWS * contenders[0].backbone.window)
    taken, ahead = {}, {}
    for c in contenders:
        (first, _), (taken[c.name], nfe) = (_video(c, frames, folder) for _ in range(2))
        ahead[c.name] = c.export_seconds + c.start_seconds + first - taken[c.name]
    out = {}
    for c in contenders:
        gain = (taken["eager"] - taken[c.name]) / nfe
        later = ahead[c.name] - ahead["eager"]
        out[c.name] = {
            "frames": frames,
            "nfe": nfe,
            "seconds": round(taken[c.name], 3),
            "ratio": round(taken["eager"] / taken[c.name], 3),
            "pays_from": round(max(0.0, later / gain)) if gain > 0 else None,
        }
    return out


def _video(c: Contender, frames: int, folder: Path) -> tuple[float, int]:
    """Make one video; return its seconds and denoiser evaluations."""
    request = GenerateRequest(
        prompts=[PromptAt(PROMPT)],
        output=folder / f"{c.name}.mp4",
        backbone=c.backbone.name,
        frames=frames,
        overwrite=True,
    )
    worked, made = timed(partial(generate, request, backbone=c.backbone), _worked)
    return worked, made.record["cost"]["nfe"]


def main() -> None:
    """Measure what the options say; the last line is one JSON document."""
    parser = argparse.ArgumentParser(description="What exporting gains on this CPU.")
    parser.add_argument("--model", choices=MODELS, action="append", help="only this one")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of calls (7)")
    parser.add_argument("--videos", action="store_true", help="make whole videos, too")
    options = parser.parse_args()
    models = tuple(options.model or MODELS)
    print(json.dumps(bench_export(models, options.repeats, options.videos)))


if __name__ == "__main__":
    sys.exit(plainly(main))
