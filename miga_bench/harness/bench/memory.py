"""Peak memory of 5,000 frames by ``generate`` over what the same process had taken at 500.

Two processes that do the same differ by more than the growth that is looked for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from miga_bench.harness.bench.common import MODEL, Part, Row, Say
from miga_bench.harness.endurance import BRIEF, EARLY, processes_are_shown, watch

FRAMES = 5000
MOST = 1.02


def measure(say: Say, repeats: int) -> Part:
    """Measure once: what grows with the length would do so every time."""
    del repeats
    if not processes_are_shown():  # nothing has failed, and the other parts count
        reason = "/proc does not show other processes here: measure on Linux"
        return Part({"skipped": reason}, [Row(f"memory: {reason}", "skipped")])
    say(f"{FRAMES} frames")
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(MODEL, FRAMES, BRIEF, Path(folder))
    ratio = seen.peak_mib / seen.early_peak_mib
    peaks = {str(EARLY): seen.early_peak_mib, str(FRAMES): seen.peak_mib}
    return Part(
        {"ratio": round(ratio, 4), "peak_mib": peaks},
        [Row(f"peak memory, {FRAMES:,} frames / {EARLY}", f"{ratio:.3f}", target=f"<= {MOST}")],
    )
