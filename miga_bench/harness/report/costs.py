"""What the videos of an arm took: work, time, memory, and what self-reflection and the cache did."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miga_bench.harness.results import Results, Row
from miga_bench.harness.store import PASSES


@dataclass(frozen=True)
class ArmCost:
    """Cost of an arm; sums over its videos that are done. None is what nobody measured.

    Attributes:
        videos: How many went in.
        frames: Of all of them.
        nfe: Denoiser evaluations per video.
        nfe_per_frame: Per video frame.
        latents_per_frame: Latents through the denoiser per video frame.
        flops_per_frame: Floating-point operations of the denoiser per video frame.
        seconds: By stage, per video frame.
        seconds_per_frame: All stages.
        memory_mib: Most of all videos, by where: the process's, the GPU's.
        triggered: Share of the judged passes on which self-reflection began a search.
        accepted: Share of the searches whose best candidate was taken.
        search_share: Share of all windows that were spent on searches.
        skipped: Share of the denoiser evaluations that the cache cut short.
    """

    videos: int
    frames: int
    nfe: float | None
    nfe_per_frame: float | None
    latents_per_frame: float | None
    flops_per_frame: float | None
    seconds: Mapping[str, float]
    seconds_per_frame: float | None
    memory_mib: Mapping[str, float]
    triggered: float | None
    accepted: float | None
    search_share: float | None
    skipped: float | None


def cost_of(run: Results, arm: str) -> ArmCost:
    """Sum up an arm."""
    rows = [row for row in run.of(arm) if row.status == "done" and row.frames]
    frames = sum(row.frames for row in rows)
    stages = list(dict.fromkeys(stage for row in rows for stage in row.cost.get("seconds", {})))
    places = list(dict.fromkeys(p for row in rows for p in row.cost.get("peak_memory_mib", {})))
    searched = _sum(rows, "search_windows", "reflection")
    windows = _sum(rows, "windows")
    triggered, accepted = _reflection(run, arm, rows)
    nfe = _sum(rows, "nfe")
    return ArmCost(
        len(rows),
        frames,
        _ratio(nfe, len(rows)),
        _ratio(nfe, frames),
        _ratio(_sum(rows, "nfe_latents"), frames),
        _ratio(_sum(rows, "flops"), frames),
        {
            stage: sum(row.cost.get("seconds", {}).get(stage, 0.0) for row in rows) / frames
            for stage in stages
        },
        _ratio(_sum(rows, "total_seconds"), frames),
        {
            place: max(row.cost.get("peak_memory_mib", {}).get(place, 0.0) for row in rows)
            for place in places
        },
        triggered,
        accepted,
        _ratio(searched, windows) if searches(run, arm) else None,
        _ratio(_sum(rows, "skipped"), nfe),
    )


def searches(run: Results, arm: str) -> bool:
    """Tell whether an arm reflects on what it makes."""
    return run.arms[arm].settings.get("reflection", "off") != "off"


def passes_of(row: Row) -> Iterator[Mapping[str, Any]]:
    """Yield a video's passes, one at a time; a line that was cut off is the end."""
    try:
        with open(row.folder / PASSES, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError):
        return


def _reflection(run: Results, arm: str, rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return the share of judged passes with a search, and that of searches that were adopted."""
    if not searches(run, arm):
        return None, None
    judged = triggers = adopted = 0
    for row in rows:
        for one in passes_of(row):
            judged += one.get("similarity") is not None
            triggers += bool(one.get("triggered"))
            adopted += bool(one.get("accepted"))
    return _ratio(triggers, judged), _ratio(adopted, triggers)


def _sum(rows: Sequence[Row], name: str, part: str | None = None) -> float | None:
    """Return a total; None as soon as one video lacks it, since part of a sum is no sum."""
    found = [(row.cost.get(part) or {} if part else row.cost).get(name) for row in rows]
    numbers = [value for value in found if isinstance(value, int | float)]
    return sum(numbers) if rows and len(numbers) == len(rows) else None


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None
