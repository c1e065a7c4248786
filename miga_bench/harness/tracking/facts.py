"""What there is to log of an arm: parameters, metrics, curves over the video and a table; no MLflow here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from miga_bench.harness.costs import ArmCost, Pass, cost_of
from miga_bench.harness.report.curves import over_time
from miga_bench.harness.report.measures import mean_over
from miga_bench.harness.results import Arm, Results, Row
from miga_bench.harness.video_table import labels_of, video_table

Metrics = dict[str, float]
Points = list[tuple[int, float]]

MOST_BINS = 256


@dataclass
class Curve:
    """A mean over steps that come from many videos; memory does not grow with their length.

    When a step lies beyond the last bin, bins are made twice as wide and merged in pairs.
    """

    width: int = 1
    sums: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, step: int, value: float) -> None:
        """Count a value at a step."""
        while step // self.width >= MOST_BINS:
            self.width *= 2
            self.sums, self.counts = _halved(self.sums), _halved(self.counts)
        place = step // self.width
        self.sums[place] = self.sums.get(place, 0.0) + value
        self.counts[place] = self.counts.get(place, 0) + 1

    def points(self) -> Points:
        """Return the first step of each bin and its mean, in order."""
        return [(n * self.width, self.sums[n] / self.counts[n]) for n in sorted(self.sums)]


def _halved(bins: Mapping[int, Any]) -> dict[int, Any]:
    merged: dict[int, Any] = {}
    for number, value in bins.items():
        merged[number // 2] = merged.get(number // 2, 0) + value
    return merged


@dataclass(frozen=True)
class ArmFacts:
    """All that is logged of an arm, apart from files.

    Attributes:
        arm: Whose they are.
        params: What the arm is.
        metrics: One number each.
        curves: Numbers over steps: frames under ``drift/``, passes under ``reflection_over_passes/``.
        table: Columns and rows; a row per video.
        status: ``FINISHED``, ``FAILED`` (a video failed) or ``KILLED`` (a video is missing).
        seconds: Spent on all its videos.
    """

    arm: Arm
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Points]
    table: Mapping[str, Sequence[Any]]
    status: str
    seconds: float

    def digest(self, *others: object) -> str:
        """Return a hash of all of it and of what else decides what is logged."""
        whole = [self.params, self.metrics, self.curves, self.table, self.status, others]
        text = json.dumps(whole, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def facts(results: Results, arm: Arm) -> ArmFacts:
    """Return what there is to say of an arm, from the run's folder."""
    rows = results.of(arm.name)
    done = [row for row in rows if row.status == "done"]
    reflection = ReflectionCurves()
    cost = cost_of(results, arm.name, reflection.add)
    counts = {f"videos/{name}": float(sum(row.status == name for row in rows)) for name in STATES}
    metrics = {**_scores(results, rows), **_cost(cost), **counts}
    metrics["videos/frames"] = float(sum(row.frames for row in done))
    states = {row.status for row in rows}
    seconds = sum(float(row.cost.get("total_seconds") or 0) for row in rows)
    return ArmFacts(
        arm,
        _params(results, arm),
        metrics,
        {**_drift(results, arm.name), **reflection.curves()},
        video_table(rows),
        "KILLED" if "missing" in states else "FAILED" if "failed" in states else "FINISHED",
        seconds,
    )


STATES = ("done", "failed", "missing")


def plain(label: str) -> str:
    """Return a score's label as MLflow takes it: ``subject_consistency[tiny]`` -> ``..._tiny``."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", label).strip("_") or "score"


def names(labels: Sequence[str]) -> dict[str, str]:
    """Return each label's plain name; two labels never share one."""
    found: dict[str, str] = {}
    for label in labels:
        name, number = plain(label), 2
        while name in found.values():
            name, number = f"{plain(label)}_{number}", number + 1
        found[label] = name
    return found


def _params(results: Results, arm: Arm) -> dict[str, str]:
    model = {k: v for k, v in results.model.items() if k != "weights_hash"}
    own = {"arm": arm.name, "method": arm.method, **arm.settings}
    return {plain(name): str(value) for name, value in {**model, **own}.items()}


def _scores(results: Results, rows: Sequence[Row]) -> Metrics:
    metrics: Metrics = {}
    labels = sorted({*labels_of(rows), *results.overall})
    for label, name in names(labels).items():
        found = mean_over(results, [row for row in rows if row.status == "done"], label)
        known = {
            f"scores/{name}": found.mean,
            f"scores_standard_error/{name}": found.standard_error,
            f"scores_low/{name}": found.low,
            f"scores_high/{name}": found.high,
            f"scores_n/{name}": found.n,
        }
        metrics |= {key: float(value) for key, value in known.items() if value is not None}
    return metrics


def _cost(cost: ArmCost) -> Metrics:
    """Return what was measured, by MLflow's keys, in which a judged pass is called watched."""
    known = {
        "cost/nfe_per_video": cost.nfe,
        "cost/nfe_per_frame": cost.nfe_per_frame,
        "cost/flops_per_video": cost.flops,
        "cost/flops_per_frame": cost.flops_per_frame,
        "cost/seconds_per_video": cost.total_seconds,
        "cost/seconds_per_frame": cost.seconds_per_frame,
        "cost/skipped_share_of_nfe": cost.skipped,
    }
    known |= {f"seconds_per_video/{plain(stage)}": spent for stage, spent in cost.stages.items()}
    known |= {f"cost/peak_memory_mib_{plain(p)}": peak for p, peak in cost.memory_mib.items()}
    if cost.judged:
        known |= {
            "reflection/triggers_per_watched_pass": cost.triggered,
            "reflection/triggers_per_frame": cost.triggers / cost.frames,
            "reflection/search_share_of_windows": cost.search_share,
            "reflection/accepted_per_trigger": cost.accepted,
        }
    return {name: float(value) for name, value in known.items() if value is not None}


def _drift(results: Results, arm: str) -> dict[str, Points]:
    """Return each score over the videos' frames, a mean over videos; a step is a bin's middle frame.

    Where videos are not of one length, their bins are not the same: they meet on the grid of reports' curves,
    each as far as it goes.
    """
    rows = [row for row in results.of(arm) if row.status == "done"]
    curves: dict[str, Points] = {}
    for label, name in names(sorted({label for row in rows for label in row.series})).items():
        if len({row.frames for row in rows if row.series.get(label)}) > 1:
            grid = {int(frame): found.mean for frame, found in over_time(results, arm, label)}
            curves[f"drift/{name}"] = [
                (step, mean) for step, mean in grid.items() if mean is not None
            ]
            continue
        bins: dict[int, list[float]] = {}
        for row in rows:
            for first, last, mean in row.series.get(label, ()):
                if mean is not None:
                    bins.setdefault(int(first + last) // 2, []).append(mean)
        curves[f"drift/{name}"] = [(step, fmean(bins[step])) for step in sorted(bins)]
    return curves


class ReflectionCurves:
    """Self-reflection over the judged passes, a mean over videos."""

    def __init__(self) -> None:
        self._curves = {name: Curve() for name in ("similarity", "triggered", "accepted")}

    def add(self, number: int, one: Pass) -> None:
        """Count a judged pass, by its number among those of its video."""
        for name, curve in self._curves.items():
            curve.add(number, float(one[name]))

    def curves(self) -> dict[str, Points]:
        """Return a curve of each number; none if no pass was judged."""
        points = {name: curve.points() for name, curve in self._curves.items()}
        return {f"reflection_over_passes/{name}": of for name, of in points.items() if of}
