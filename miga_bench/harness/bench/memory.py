"""Peak memory of 5,000 frames over that of 500, each made by ``generate`` in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from miga_bench.harness.bench.common import MODEL, Part, Row, Say
from miga_bench.harness.endurance import BRIEF, watch

MOST = 1.02


def measure(say: Say, repeats: int) -> Part:
    """Measure each length once: peaks hardly vary."""
    del repeats
    peaks = {}
    for frames in (500, 5000):
        say(f"{frames} frames")
        with tempfile.TemporaryDirectory() as folder:
            peaks[frames] = watch(MODEL, frames, BRIEF, Path(folder)).peak_mib
    ratio = peaks[5000] / peaks[500]
    return Part(
        {"ratio": round(ratio, 4), "peak_mib": {str(frames): mib for frames, mib in peaks.items()}},
        [Row("peak memory, 5,000 frames / 500", f"{ratio:.3f}", target=f"<= {MOST}")],
    )
