"""Peak memory of 5,000 frames over that of 500, each made by ``generate`` in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from miga_bench.harness.bench.common import MODEL, PROMPT, Part, Row, Say, in_a_process

# Few steps, so that thousands of frames end soon; what is held in memory does not depend on them.
BRIEF = ("steps=12", "stage2_steps=2", "renoise=2", "reflection=off", "guidance_scale=1")
MOST = 1.02


def measure(say: Say, repeats: int) -> Part:
    """Measure each length once: peaks hardly vary."""
    del repeats
    peaks = {}
    for frames in (500, 5000):
        say(f"{frames} frames")
        peaks[frames] = _peak(frames)
    ratio = peaks[5000] / peaks[500]
    return Part(
        {"ratio": round(ratio, 4), "peak_mib": {str(frames): mib for frames, mib in peaks.items()}},
        [Row("peak memory, 5,000 frames / 500", f"{ratio:.3f}", target=f"<= {MOST}")],
    )


def _peak(frames: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "miga_bench", "generate", PROMPT, "--quiet", "--backbone", MODEL]
        command += ["--device", "cpu", "--frames", str(frames), "-o", str(Path(folder) / "out.mp4")]
        for setting in BRIEF:
            command += ["--set", setting]
        record = in_a_process(*command)
    return float(record["cost"]["peak_memory_mib"]["process"])
