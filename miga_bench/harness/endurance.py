"""Endurance: a very long video takes no more memory and files than at its beginning, and plays to its end.

    python -m miga_bench.harness.endurance --backbone tiny-wan --frames 20000
    python -m miga_bench.harness.endurance --hours 1        (an endless run, stopped as by Ctrl-C)

The video is made by ``miga-bench generate`` in a process of its own, which is looked at from outside. Memory
is compared with that of the same process when 500 frames were on disk: two processes that do the same differ
by more than the growth that is looked for. The table says what was asked for and what was seen; exit code 1
if they differ. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from miga_bench.backbones.tiny.drift import measure
from miga_bench.backbones.tiny.grammar import parse_caption
from miga_bench.backbones.tiny.world import CLIP_FRAMES
from miga_bench.errors import FailedError, plainly
from miga_bench.harness.bench.common import PROMPT
from miga_bench.harness.provenance import RESET, hardware, memory_kib, versions
from miga_bench.media import count_frames, read_video

# Few steps, so that thousands of frames end soon; what is held in memory does not depend on them.
BRIEF = ("steps=14", "stage2_steps=2", "renoise=2", "reflection=off", "guidance_scale=1")
EARLY = 500  # frames on disk when the memory is looked at that the end is held against
EVERY = 0.5  # seconds from look to look
SETTLED = 0.2  # of the looks belong to starting up and filling the queue
CURVE = 20  # points of the drift curve
MEMORY_TARGET = 1.02
PROC = Path("/proc")
NOT_SHOWN = "processes are looked at through /proc, which is not here: use Linux"


@dataclass
class Watched:
    """What a process that made a video was seen to take, and what it left behind.

    Attributes:
        record: What it says of the video.
        video: The file.
        early_peak_mib: Its peak memory when ``EARLY`` frames were on disk; 0.0 if that was not seen.
        files: Open file descriptors, look by look.
        threads: Likewise.
    """

    record: dict[str, Any]
    video: Path
    early_peak_mib: float = 0.0
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    @property
    def peak_mib(self) -> float:
        """Its peak memory, at least the early one: the kernel's two counts of it differ by a few pages."""
        recorded = float(self.record["cost"]["peak_memory_mib"]["process"])
        return max(recorded, self.early_peak_mib)


def processes_are_shown() -> bool:
    """Tell whether the system shows what other processes hold, and keeps their peaks, as Linux does."""
    shown = (PROC / "self" / "fd").is_dir() and memory_kib("VmHWM") is not None
    return shown and RESET.exists()


def watch(
    backbone: str, frames: int | None, settings: Sequence[str], folder: Path, seconds: float = 0.0
) -> Watched:
    """Make a video in a process of its own and look at it meanwhile.

    Args:
        backbone: An embedded model.
        frames: To be made; None goes on for so many ``seconds``.
        settings: ``NAME=VALUE``, over the preset.
        folder: For the video.
        seconds: From its first ``EARLY`` frames until an endless run is stopped.

    Raises:
        FailedError: It failed, or cannot be looked at.
    """
    if not processes_are_shown():  # an endless run would never be seen to have begun
        raise FailedError(NOT_SHOWN)
    video = folder / f"{frames or 'endless'}.mp4"
    command = [sys.executable, "-m", "miga_bench", "generate", PROMPT, "--quiet"]
    command += ["--backbone", backbone, "--device", "cpu", "--denoiser", "torch", "-o", str(video)]
    command += ["--endless"] if frames is None else ["--frames", str(frames)]
    for setting in settings:
        command += ["--set", setting]
    watched = Watched({}, video)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own, end = PROC / str(process.pid), None
    while process.poll() is None:
        time.sleep(EVERY)
        try:
            watched.files.append(len(os.listdir(own / "fd")))
            watched.threads.append(len(os.listdir(own / "task")))
            if not watched.early_peak_mib and video.exists() and count_frames(video) >= EARLY:
                watched.early_peak_mib = round((memory_kib("VmHWM", process.pid) or 0) / 1024, 1)
        except OSError:  # it ended just now
            continue
        if frames is None and end is None and watched.early_peak_mib:
            end = time.monotonic() + seconds
        if end is not None and time.monotonic() > end:
            process.send_signal(signal.SIGINT)
            end = float("inf")
    out, error = process.communicate()
    if process.returncode not in (0, 130 if frames is None else 0):
        raise FailedError(f"generate failed: {error.strip()}")
    watched.record = json.loads(out.splitlines()[-1])
    return watched


def growth(looks: Sequence[int]) -> int:
    """Return how much more the last looks saw than the first after the start, by their medians."""
    settled = looks[round(SETTLED * len(looks)) :]
    part = max(1, len(settled) // 4)
    return round(statistics.median(settled[-part:]) - statistics.median(settled[:part]))


def drift_curve(video: Path, frames: int) -> tuple[int, list[dict[str, Any]]]:
    """Return how many frames play, and how far they have strayed from the opening by when.

    Args:
        video: Of the embedded world.
        frames: How many there should be.
    """
    size = max(CLIP_FRAMES, frames // CURVE)
    opening: Tensor | None = None
    played, curve = 0, []
    for part in _parts(video, size):
        opening = part[:CLIP_FRAMES] if opening is None else opening
        drift = measure(
            torch.cat([opening, part]).float() / 255, parse_caption(PROMPT), len(opening)
        )
        curve.append({"frame": played, **drift.as_dict()})
        played += len(part)
    return played, curve


def _parts(video: Path, size: int) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for frame in read_video(video):
        held.append(frame)
        if len(held) == size:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def endurance(
    backbone: str, frames: int | None, settings: Sequence[str], hours: float, folder: Path
) -> dict[str, Any]:
    """Make the video and return what was seen.

    ``failed`` names what is not as it should be.
    """
    say = Console(stderr=True, highlight=False).print
    say(f"{frames} frames of {backbone} ..." if frames else f"{hours:g} hours of {backbone} ...")
    seen = watch(backbone, frames, settings, folder, hours * 3600)
    written = int(seen.record["frames"])
    say(f"playing {written} frames ...")
    played, curve = drift_curve(seen.video, written)
    ratio = seen.peak_mib / seen.early_peak_mib if seen.early_peak_mib else float("inf")
    rows = [
        (
            f"peak memory, whole / {EARLY} frames",
            f"{ratio:.3f}",
            f"<= {MEMORY_TARGET}",
            ratio <= MEMORY_TARGET,
        ),
        ("files opened and kept", str(growth(seen.files)), "0", growth(seen.files) <= 0),
        ("threads started and kept", str(growth(seen.threads)), "0", growth(seen.threads) <= 0),
        ("frames that play", str(played), str(frames or written), played == (frames or written)),
    ]
    table = Table("measurement", "seen", "wanted", title=f"{backbone}, {written} frames")
    for name, found, wanted, _ in rows:
        table.add_row(name, found, wanted)
    Console(width=None if Console().is_terminal else 120).print(table)
    return {
        "backbone": backbone,
        "settings": list(settings),
        "frames": written,
        "seconds": seen.record["cost"]["total_seconds"],
        "peak_mib": {"early": round(seen.early_peak_mib, 1), "whole": seen.peak_mib},
        "memory_ratio": round(ratio, 4),
        "files": {"first": seen.files[0], "most": max(seen.files), "growth": growth(seen.files)},
        "threads": {"most": max(seen.threads), "growth": growth(seen.threads)},
        "played": played,
        "drift": curve,
        "failed": [name for name, _, _, good in rows if not good],
        "hardware": hardware("cpu"),
        "versions": versions(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the options say; the last line is one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--backbone", default="tiny-wan", help="an embedded model (tiny-wan)")
    parser.add_argument("--frames", type=int, default=20_000, help="of the video (20000)")
    parser.add_argument("--hours", type=float, help="instead of --frames: an endless run, stopped")
    parser.add_argument(
        "--set",
        action="append",
        dest="settings",
        metavar="NAME=VALUE",
        help=f"a setting; several times ({' '.join(BRIEF)})",
    )
    options = parser.parse_args(arguments)
    if not processes_are_shown():
        parser.error(NOT_SHOWN)
    if options.frames < 2 * EARLY:
        parser.error(f"--frames {options.frames}: the least is {2 * EARLY}, to see memory grow")
    frames = None if options.hours else options.frames
    with tempfile.TemporaryDirectory() as folder:
        found = endurance(
            options.backbone, frames, options.settings or BRIEF, options.hours or 0.0, Path(folder)
        )
    print(json.dumps(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(plainly(main))
