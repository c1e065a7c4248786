"""From videos to curves: a score over video time, a score over a setting, similarity over passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from miga_bench.harness.costs import passes_of, searches
from miga_bench.harness.report.measures import KNOWN, Measure, mean_over, measure_of
from miga_bench.harness.results import Results, Row
from miga_bench.metrics.statistics import Estimate, estimate

STEPS = 48  # points of a curve over time


@dataclass(frozen=True)
class ReflectionCurve:
    """What self-reflection saw in one video, pass by pass.

    Attributes:
        seen: (number of the pass in the video, similarity), of judged passes.
        rejected: Those of them that began a search whose candidates were all worse.
        accepted: Those whose search found a better one.
    """

    seen: Sequence[tuple[int, float]]
    rejected: Sequence[tuple[int, float]]
    accepted: Sequence[tuple[int, float]]


def reflection_of(row: Row) -> ReflectionCurve:
    """Read a video's passes."""
    seen: list[tuple[int, float]] = []
    rejected: list[tuple[int, float]] = []
    accepted: list[tuple[int, float]] = []
    for number, one in enumerate(passes_of(row)):
        if one.get("similarity") is None:
            continue
        point = (number, float(one["similarity"]))
        seen.append(point)
        if one.get("triggered"):
            (accepted if one.get("accepted") else rejected).append(point)
    return ReflectionCurve(seen, rejected, accepted)


def timed_measures(run: Results) -> list[Measure]:
    """Return the scores that videos have over their time, in the order of the tables."""
    labels = {label for row in run.rows for label, bins in row.series.items() if bins}
    order = {label: measure_of(label, run.told) for label in sorted(labels)}
    known = [measure.label for measure in KNOWN]
    return sorted(
        order.values(),
        key=lambda m: (known.index(m.base) if m.base in known else len(known), m.label),
    )


def over_time(run: Results, arm: str, label: str) -> list[tuple[float, Estimate]]:
    """Return the mean over an arm's videos along the video: (frame, mean with its interval).

    Every video counts as far as it goes; a value stands for its whole bin.
    """
    rows = [row for row in run.of(arm) if row.series.get(label)]
    if not rows:
        return []
    length = max(_length(row, label) for row in rows)
    out = []
    for step in range(STEPS):
        frame = (step + 0.5) * length / STEPS
        values = [_at(row, label, frame) for row in rows]
        found = estimate(values, [row.cluster for row in rows])
        if found.n:
            out.append((frame, found))
    return out


def _length(row: Row, label: str) -> int:
    return row.frames or int(row.series[label][-1][1]) + 1


def _at(row: Row, label: str, frame: float) -> float | None:
    """Return the mean of the bin that holds a frame; None behind the end."""
    bins = row.series[label]
    # some scores have fewer values than frames: pairs of frames, every second frame
    stretch = _length(row, label) / (bins[-1][1] + 1)
    return next((mean for _, last, mean in bins if frame < stretch * (last + 1)), None)


def along_axis(
    run: Results, axis: str, measure: Measure
) -> dict[str, list[tuple[float, Estimate]]]:
    """Return, for each family of arms, (value of the setting, mean with its interval).

    A family is the arms whose names are the same but for the setting, as grids name it, or else for a
    number at the end: ``zigzag-1.stage2_steps-5``, ``zigzag-3.stage2_steps-5``; ``anchor-2``, ``anchor-4``.
    An arm without a number whose value is below all others', such as ``none``, begins every family; one
    whose value is not, such as a preset beside a grid, differs in more than the axis and is on no curve.
    Arms whose value is no number, or does not count since reflection is off, are left out. The axis
    ``frames`` is the videos' length, and every arm a family.
    """
    out: dict[str, list[tuple[float, Estimate]]] = {}
    for name in run.arms:
        for value, rows in _rows_by_value(run, axis, name).items():
            found = mean_over(run, rows, measure.label)
            if found.n:
                family = name if axis == "frames" else _family(name, axis)
                out.setdefault(family or axis, []).append((value, found))
    if axis != "frames" and len(out) > 1:
        starts = [family for family in out if family in run.arms and len(out[family]) == 1]
        if len(starts) < len(out):
            alone = [point for family in starts for point in out.pop(family)]
            least = min(value for points in out.values() for value, _ in points)
            first = [point for point in alone if point[0] < least]
            out = {family: [*first, *points] for family, points in out.items()}
    return {family: sorted(points, key=lambda p: p[0]) for family, points in out.items()}


def _family(name: str, axis: str) -> str:
    """Return an arm's name without its value of the setting."""
    parts = rf"(^|\.){re.escape(axis)}-[-+0-9.e]+?(?=\.[A-Za-z]|$)"
    rest, found = re.subn(parts, "", name)
    return rest.strip(".") if found else re.sub(r"[-_.=]?[0-9.]+$", "", name)


def without_reflection(run: Results, axis: str, measure: Measure) -> Estimate | None:
    """Return the mean of the arm that does not reflect, where the axis is the threshold of reflection."""
    arms = [] if axis != "reflection_threshold" else [a for a in run.arms if not searches(run, a)]
    found = [mean_over(run, run.of(arm), measure.label) for arm in arms]
    return found[0] if found and found[0].n else None


def _rows_by_value(run: Results, axis: str, arm: str) -> dict[float, list[Row]]:
    if axis == "frames":
        out: dict[float, list[Row]] = {}
        for row in run.of(arm):
            if row.status == "done":
                out.setdefault(float(row.frames), []).append(row)
        return out
    value = run.arms[arm].settings.get(axis)
    off = axis == "reflection_threshold" and not searches(run, arm)
    if off or isinstance(value, bool) or not isinstance(value, int | float):
        return {}
    return {float(value): run.of(arm)}
