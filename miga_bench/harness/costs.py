"""What the videos of an arm took: work, time, memory, and what self-reflection and the cache did.

Reports and tracking say the same of it, since both read it here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from miga_bench.harness.results import Results, Row
from miga_bench.harness.store import PASSES

Pass = Mapping[str, Any]  # what one pass of a video reported


@dataclass(frozen=True)
class ArmCost:
    """Cost of an arm; sums over its videos that are done. None is what nobody measured.

    Attributes:
        videos: How many went in.
        frames: Of all of them.
        nfe: Denoiser evaluations per video.
        nfe_per_frame: Per video frame.
        latents_per_frame: Latents through the denoiser per video frame.
        flops: Floating-point operations of the denoiser per video.
        flops_per_frame: Per video frame.
        stages: Seconds per video, by stage.
        seconds: By stage, per video frame.
        total_seconds: All stages, per video.
        seconds_per_frame: All stages.
        memory_mib: The highest of all videos, by place: the process's, the GPU's.
        judged: Passes that self-reflection judged; 0 where it is off.
        triggers: Those on which it began a search.
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
    flops: float | None
    flops_per_frame: float | None
    stages: Mapping[str, float]
    seconds: Mapping[str, float]
    total_seconds: float | None
    seconds_per_frame: float | None
    memory_mib: Mapping[str, float]
    judged: int
    triggers: int
    triggered: float | None
    accepted: float | None
    search_share: float | None
    skipped: float | None


def cost_of(run: Results, arm: str, seen: Callable[[int, Pass], None] | None = None) -> ArmCost:
    """Sum up an arm.

    Args:
        run: Holds the arm.
        arm: Its name.
        seen: Called with each judged pass and its number among those of its video. If given, passes of
            methods without self-reflection are read too: ScalingNoise reports its search as one.
    """
    rows = [row for row in run.of(arm) if row.status == "done" and row.frames]
    frames = sum(row.frames for row in rows)
    stages = list(dict.fromkeys(stage for row in rows for stage in row.cost["seconds"]))
    spent = {stage: [row.cost["seconds"].get(stage, 0.0) for row in rows] for stage in stages}
    peaks = [row.cost["peak_memory_mib"] for row in rows]
    places = list(dict.fromkeys(place for peak in peaks for place in peak))
    nfe, flops = _values(rows, "nfe"), _values(rows, "flops")
    seconds = _values(rows, "total_seconds")
    judged = triggers = accepted = 0
    share = None
    if seen or searches(run, arm):
        judged, triggers, accepted = _reflection(rows, seen or (lambda number, one: None))
        searched = _values(rows, "search_windows", "reflection")
        share = _ratio(_sum(searched), _sum(_values(rows, "windows")))
    return ArmCost(
        videos=len(rows),
        frames=frames,
        nfe=_mean(nfe),
        nfe_per_frame=_ratio(_sum(nfe), frames),
        latents_per_frame=_ratio(_sum(_values(rows, "nfe_latents")), frames),
        flops=_mean(flops),
        flops_per_frame=_ratio(_sum(flops), frames),
        stages={stage: fmean(values) for stage, values in spent.items()},
        seconds={stage: sum(values) / frames for stage, values in spent.items()},
        total_seconds=_mean(seconds),
        seconds_per_frame=_ratio(_sum(seconds), frames),
        memory_mib={place: max(peak.get(place, 0.0) for peak in peaks) for place in places},
        judged=judged,
        triggers=triggers,
        triggered=_ratio(triggers, judged),
        accepted=_ratio(accepted, triggers),
        search_share=share,
        skipped=_ratio(_sum(_values(rows, "skipped")), _sum(nfe)),
    )


def machines(run: Results, arms: Iterable[str] | None = None) -> dict[str, int]:
    """Return the machines on which the finished videos were made, and how many on each.

    Seconds and memory of several machines, or of teams of several sizes, cannot compare arms.

    Args:
        run: Holds the arms.
        arms: Of these only; None is all.
    """
    wanted = set(run.arms if arms is None else arms)
    done = (row for row in run.rows if row.status == "done" and row.arm in wanted)
    return dict(Counter(row.machine for row in done))


def searches(run: Results, arm: str) -> bool:
    """Tell whether an arm reflects on what it makes."""
    return run.arms[arm].settings.get("reflection", "off") != "off"


def passes_of(row: Row) -> Iterator[Pass]:
    """Yield a video's passes, one at a time; a line that was cut off is the end."""
    try:
        with open(row.folder / PASSES, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError):
        return


def _reflection(rows: Sequence[Row], seen: Callable[[int, Pass], None]) -> tuple[int, int, int]:
    """Return how many passes were judged, on how many a search began, and how many were adopted."""
    judged = triggers = adopted = 0
    for row in rows:
        number = 0
        for one in passes_of(row):
            if one.get("similarity") is None:
                continue
            seen(number, one)
            number += 1
            triggers += bool(one.get("triggered"))
            adopted += bool(one.get("accepted"))
        judged += number
    return judged, triggers, adopted


def _values(rows: Sequence[Row], name: str, part: str | None = None) -> list[float] | None:
    """Return a number per video; None as soon as one lacks it, since part of a sum is no sum."""
    found = [(row.cost[part] if part else row.cost).get(name) for row in rows]
    numbers = [value for value in found if isinstance(value, int | float)]
    return numbers if rows and len(numbers) == len(rows) else None


def _sum(values: Sequence[float] | None) -> float | None:
    return None if values is None else sum(values)


def _mean(values: Sequence[float] | None) -> float | None:
    return None if values is None else fmean(values)


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None
