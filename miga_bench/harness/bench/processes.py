"""What several processes gain: by videos of their own, or by sharing the windows of one video.

* by items, as ``miga-bench predict`` deals them: independent processes of one thread make a video each, all
  begin at the same time, and what counts is videos per wall time; each round has each number of processes, for
  a machine may be slow for a while;
* by windows, as ``run.window_parallel`` and ``WindowParallel`` do: processes share each pass of one video,
  and what counts is its wall time (``shared_windows.py`` in torchrun);
* by windows on the large models, counted: the evaluations of a video of MIGA by the paper's settings over
  those of the process with most to do. What processes wait for each other is not in it.

More processes than cores cannot gain; the document has the number of cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import IO, Any

import torch

from miga_bench.backbones import load_backbone
from miga_bench.errors import FailedError
from miga_bench.harness.bench import shared_windows
from miga_bench.harness.bench.common import (
    MODEL,
    SMALL,
    Part,
    Row,
    Say,
    in_a_process,
    maker,
    usable_cores,
)
from miga_bench.harness.bench.rounds import Spread, seconds, timed
from miga_bench.sampling import METHODS, resolve
from miga_bench.sampling.estimate import BATCH, estimate

COUNTS = (1, 2, 4)
TEAMS = (4, 8)
# Whose windows are as long as the large models'.
LARGE = {"Wan2.1": "tiny-wan", "VideoCrafter2": "tiny-videocrafter2"}
FRAMES = 1000


def measure(say: Say, repeats: int) -> Part:
    """Measure throughput by items and latency by windows."""
    cores = usable_cores()
    part = Part({"cores": cores, "settings": SMALL, "by_items": {}, "by_windows": {}})
    rates: dict[int, Spread] = {}
    say(f"{', '.join(map(str, COUNTS))} processes, a video each, {repeats} rounds")
    for count, (walls, busy) in _videos(repeats).items():
        rate = Spread(tuple(count / wall for wall in walls.values))
        rates[count] = rate
        gain = rate.over(rates[COUNTS[0]])
        part.document["by_items"][str(count)] = {
            "videos_per_second": rate.document(),
            "throughput_over_1": gain.document(),
            "processor_seconds_per_video": busy.document(),
        }
        part.rows.append(
            Row(
                f"{count} processes on {cores} cores, a video each: videos a minute; times as many",
                f"{rate.times(60).median:.2f}; {gain.median:.2f}",
                "; ".join(filter(None, (one.text(".2f")[1] for one in (rate.times(60), gain)))),
            )
        )
    for count in COUNTS[1:]:
        say(f"{count} processes share the windows of a video, {repeats} rounds")
        found = in_a_process(
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)),
            *("-m", shared_windows.__name__, str(repeats)),
        )
        part.document["by_windows"][str(count)] = found
        gain_of = found["speedup"]
        part.rows.append(
            Row(
                f"{count} processes on {cores} cores, one video: a pass of {found['windows_per_pass']} windows,"
                " times as fast",
                f"{gain_of['median']:.2f}",
                f"{gain_of['min']:.2f} to {gain_of['max']:.2f}",
            )
        )
    say(f"counting the shares of {FRAMES} frames")
    part.document["counted"] = {}
    for name, embedded in LARGE.items():
        gains = {team: _counted(embedded, team) for team in TEAMS}
        part.document["counted"][name] = gains
        told = ", ".join(f"{gain:.1f} by {team}" for team, gain in gains.items())
        part.rows.append(
            Row(f"{name}'s windows, {FRAMES} frames of MIGA, counted: times as fast", told)
        )
    return part


def _counted(embedded: str, team: int) -> float:
    """Return a video's evaluations over those of the process of a team that has most to do."""
    backbone = load_backbone(embedded, device="cpu")
    sampler = METHODS["miga"](resolve("miga", backbone, "paper"))
    found = estimate(sampler, backbone, backbone.latents_for(FRAMES), BATCH, team=team)
    return found.nfe / sum(call.rows * count for call, count in found.shares.items())


def _videos(rounds: int) -> dict[int, tuple[Spread, Spread]]:
    """Let 1, 2 and 4 processes make a video each, at the same time, in turns in every round.

    Returns:
        By the number of processes: by round the wall seconds until all were done, and by video its processor
        seconds.
    """
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(max(COUNTS))
        ]
        for worker in workers:
            _answer(worker)
        walls: dict[int, list[float]] = {count: [] for count in COUNTS}
        busy: dict[int, list[float]] = {count: [] for count in COUNTS}
        for _ in range(rounds):
            for count in COUNTS:
                start = time.perf_counter()
                for worker in workers[:count]:
                    pipe: Any = worker.stdin
                    pipe.write("go\n")
                    pipe.flush()
                busy[count] += [_answer(one)["processor_seconds"] for one in workers[:count]]
                walls[count].append(time.perf_counter() - start)
        return {c: (Spread(tuple(walls[c])), Spread(tuple(busy[c]))) for c in COUNTS}


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next line that a worker says.

    Raises:
        FailedError: It ended instead.
    """
    pipe: IO[str] | None = worker.stdout
    line = pipe.readline() if pipe else ""
    if not line:
        raise FailedError(
            f"a measuring process ended with exit code {worker.wait()}: what it said stands above"
        )
    answer: dict[str, Any] = json.loads(line)
    return answer


def work() -> None:
    """Be a worker: load, warm up, then make a video for every line of standard input, until it ends."""
    torch.set_num_threads(1)
    backbone = load_backbone(MODEL, device="cpu")
    make = maker(backbone, "miga", SMALL, backbone.window)
    warm, _ = timed(make)
    print(json.dumps({"warm_up_seconds": warm}), flush=True)
    while sys.stdin.readline():
        print(json.dumps({"processor_seconds": seconds(make)}), flush=True)


if __name__ == "__main__":
    work()
