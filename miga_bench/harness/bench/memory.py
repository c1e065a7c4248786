"""Peak memory of 5,000 frames by ``generate`` over what the same process had taken at 500.

Two processes that do the same differ by more than the growth that is looked for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from miga_bench.errors import FailedError
from miga_bench.harness.bench.common import MODEL, Part, Row, Say
from miga_bench.harness.endurance import BRIEF, EARLY, watch

FRAMES = 5000
MOST = 1.02


def measure(say: Say, repeats: int) -> Part:
    """Measure once: what grows with the length would do so every time.

    Raises:
        FailedError: The process could not be looked at.
    """
    del repeats
    say(f"{FRAMES} frames")
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(MODEL, FRAMES, BRIEF, Path(folder))
    if not seen.early_peak_mib:
        raise FailedError(
            "memory: /proc does not show that of another process here; measure on Linux, or name other parts"
            " with --only"
        )
    ratio = seen.peak_mib / seen.early_peak_mib
    peaks = {str(EARLY): seen.early_peak_mib, str(FRAMES): seen.peak_mib}
    return Part(
        {"ratio": round(ratio, 4), "peak_mib": peaks},
        [Row(f"peak memory, {FRAMES:,} frames / {EARLY}", f"{ratio:.3f}", target=f"<= {MOST}")],
    )
