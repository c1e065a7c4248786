"""How many windows share a denoiser call: at most 1, 2, 4, or all of a pass (``--set batch=N``)."""

from __future__ import annotations

import time

import torch

from miga_bench.backbones import load_backbone
from miga_bench.harness.bench.common import (
    MODEL,
    SMALL,
    Part,
    Row,
    Say,
    TimeMeter,
    maker,
    usable_cores,
)
from miga_bench.harness.bench.rounds import Clock, in_turns

LIMITS = {"1": 1, "2": 2, "4": 4, "all": 1000}


def measure(say: Say, repeats: int) -> Part:
    """Make the same video with each limit in turns, on all cores by wall time, on one by processor time."""
    backbone = load_backbone(MODEL, device="cpu")
    length = 2 * backbone.window
    works = {
        name: maker(backbone, "miga", {**SMALL, "batch": limit}, length)
        for name, limit in LIMITS.items()
    }
    say("warm-up")
    rows_of_calls = {}
    for name, work in works.items():
        backbone.meter = meter = TimeMeter()
        work()
        rows_of_calls[name] = meter.largest
    backbone.meter = None
    part = Part({"settings": SMALL, "latents": length, "rows_of_largest_call": rows_of_calls})
    cores = usable_cores()
    clocks: dict[str, tuple[int, Clock]] = {
        f"{cores} cores, wall": (cores, time.perf_counter),
        "one thread, processor": (1, time.process_time),
    }
    for way, (threads, clock) in clocks.items():
        say(f"{repeats} rounds, {way}")
        torch.set_num_threads(threads)
        taken = in_turns(works, repeats, clock)
        part.document[way] = {}
        for name, spread in taken.items():
            gain = taken["1"].over(spread)
            part.document[way][name] = {
                "seconds": spread.document(),
                "speedup_over_1": gain.document(),
            }
            what = f"batch {name} (up to {rows_of_calls[name]} rows): speed over 1, {way}"
            part.rows.append(Row(what, *gain.text(".2f")))
    torch.set_num_threads(1)
    return part
