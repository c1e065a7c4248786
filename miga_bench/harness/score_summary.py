"""From the videos' values to the document: means, intervals, the overall score, plot and table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import UserError, counted
from miga_bench.harness.clusters import OVER, clusters
from miga_bench.metrics.base import Terms, VideoScore
from miga_bench.metrics.long import LongVideo, long_score
from miga_bench.metrics.networks.base import Network, plain
from miga_bench.metrics.statistics import SURE_FROM, Estimate, estimate
from miga_bench.metrics.suites import OVERALL, WITHIN_ONE, overall_label

if TYPE_CHECKING:
    from rich.table import Table

    from miga_bench.harness.score_request import Plan

Row = dict[str, Any]
NO_VALUE = "-"
NOT_FINITE = "NaN or infinity came of it"
ROUNDING = 1e-9  # what summing in another order leaves of a mean of scores
_NO_INTERVAL = {
    "low": None,
    "high": None,
    "standard_error": None,
    "reason": "an interval is of the mean over videos, which this score is not",
}


def summary(
    rows: Sequence[Row],
    plan: Plan,
    scores: Sequence[VideoScore],
    reading: str = "exact",
    fast: Mapping[str, Network] | None = None,
) -> Row:
    """Return the document of a scoring.

    Args:
        rows: Of each video its name, prompt and values.
        plan: How they were scored.
        scores: Of the plan's dimensions; they take these videos in and forget all others.
        reading: Of VBench-Long; see ``long_score``.
        fast: Encoders of VBench-Long's clip-to-clip scores, by dimension.

    Raises:
        UserError: No video has a value.
    """
    if all(row["reason"] for row in rows):
        raise UserError(f"no video could be scored; the first: {rows[0]['reason']}")
    rows = [_finite(row) for row in rows]
    for score in scores:
        score.reset()
    sums = [
        _of_clips(score, rows, reading, plan.development) if plan.long else _of_videos(score, rows)
        for score in scores
    ]
    for score, (found, _) in zip(scores, sums, strict=True):
        if fast and score.name in fast:
            found["networks"] |= plain({"fast": fast[score.name].provenance})
    labels = {score.name: score.label for score in scores}
    document: Row = {
        "suite": "vbench-long" if plan.long else plan.networks,
        "networks": plan.networks,
        "clustered_by": clusters([r["video"] for r in rows], [r["prompt"] for r in rows])[1],
        "scores": {labels[one.name]: found for one, (found, _) in zip(scores, sums, strict=True)},
        "videos": [_video(row) for row in rows],
    }
    values = {score.name: by_video for score, (_, by_video) in zip(scores, sums, strict=True)}
    for name, by_video in values.items():
        for video in document["videos"]:
            video["scores"][labels[name]] = by_video.get(video["video"])
    if all(name in values for name in OVERALL):
        _add_overall(document, {name: values[name] for name in OVERALL}, labels)
    if plan.long:
        document |= {"reading": reading, "development": plan.development}
    return document


def _finite(row: Row) -> Row:
    """Return a row with a reason in place of what is not finite: it would spoil every mean that it enters."""
    scores = {}
    for name, found in row["scores"].items():
        numbers = [found.get(key) for key in ("value", "fast")]
        numbers += [*found.get("terms", ()), *found.get("clips", ())]
        known = all(number is None or math.isfinite(number) for number in numbers)
        scores[name] = found if known else {"value": None, "reason": NOT_FINITE}
    return {**row, "scores": scores}


def _video(row: Row) -> Row:
    series = {name: found["series"] for name, found in row["scores"].items() if found.get("series")}
    reasons = {n: f["reason"] for n, f in row["scores"].items() if f.get("reason") is not None}
    return {
        "video": row["video"],
        "prompt": row["prompt"],
        "frames": row["frames"],
        "frame_rate": row.get("frame_rate"),
        "reason": row["reason"] or reasons or None,
        "scores": {},
        "series": series,
    }


def _clusters(rows: Sequence[Row]) -> list[str]:
    return clusters([row["video"] for row in rows], [row["prompt"] for row in rows])[0]


def _of_videos(score: VideoScore, rows: Sequence[Row]) -> tuple[Row, dict[str, float]]:
    """Sum up a dimension of whole videos; also each video's value."""
    values: dict[str, float] = {}
    for row, cluster in zip(rows, _clusters(rows), strict=True):
        found = row["scores"].get(score.name)
        if found and found["value"] is not None:
            values[row["video"]] = found["value"]
            score.restore(Terms(*found["terms"]), cluster, row["video"])
    # all rows are here; ranks of a run that score other videos take no part
    return _document(score, score.own_estimate(), len(rows), values), values


def _of_clips(
    score: VideoScore, rows: Sequence[Row], reading: Any, development: bool
) -> tuple[Row, dict[str, float]]:
    """Sum up a dimension of VBench-Long; also each video's fused score."""
    videos = {
        row["video"]: LongVideo(
            row["video"].removesuffix(".mp4"),
            tuple(found["clips"]),
            found["length"],
            found["fast"] if development else None,
        )
        for row in rows
        if (found := row["scores"].get(score.name)) and found.get("clips")
    }
    values: dict[str, float] = {}
    total: float | None = None
    if videos:
        whole = long_score(list(videos.values()), score.name, reading, development)
        values = dict(zip(videos, (video.score for video in whole.videos), strict=True))
        total = whole.total
    prompts = {row["video"]: cluster for row, cluster in zip(rows, _clusters(rows), strict=True)}
    found = estimate(list(values.values()), [prompts[name] for name in values])
    document = _document(score, found, len(rows), values)
    # the interval is of the mean over videos, which is the score in the exact reading
    document |= {"mean": total, "aggregate": "clip" if reading == "reference" else "video"}
    if reading == "reference":
        document |= _NO_INTERVAL
    return document, values


def _document(
    score: VideoScore, found: Estimate, videos: int, values: Mapping[str, float | None]
) -> Row:
    return {
        **asdict(found),
        "dropped": videos - sum(value is not None for value in values.values()),
        "videos": videos,
        "aggregate": score.aggregate,
        "networks": score.provenance()["networks"],
    }


def _add_overall(
    document: Row, values: dict[str, dict[str, float]], labels: dict[str, str]
) -> None:
    """Add the mean of the four, of every video and of all."""
    label = overall_label([labels[name] for name in OVERALL])
    for video in document["videos"]:
        four = [found.get(video["video"]) for found in values.values()]
        video["scores"][label] = None if None in four else sum(four) / len(four)  # type: ignore[arg-type]
    found = estimate(
        [video["scores"][label] for video in document["videos"]], _clusters(document["videos"])
    )
    means = [document["scores"][labels[name]]["mean"] for name in OVERALL]
    mean = None if None in means else sum(means) / len(means)
    document["scores"][label] = {**asdict(found), "mean": mean, "aggregate": "mean of the four"}
    # where clips or frames weigh in the four, or a video lacks one of them, theirs is another mean
    if mean is not None and found.mean is not None:
        own = math.isclose(mean, found.mean, abs_tol=ROUNDING)
        document["scores"][label] |= {} if own else _NO_INTERVAL


def show(document: Row) -> None:
    """Print the table on stderr, where it does not mix with the JSON."""
    from rich.console import Console

    console = Console(stderr=True)
    (console if console.is_terminal else Console(stderr=True, width=140)).print(table(document))


def table(document: Row) -> Table:
    """Return the summary and every video's values for the terminal."""
    from rich.table import Table

    labels = list(document["scores"])
    # a heading a line for each word, so that none is cut
    headings = [label.replace("_", " ").replace("[", "\n\\[") for label in labels]
    over = OVER[document["clustered_by"]]
    videos = counted(len(document["videos"]), "video")
    shown = Table("", *headings, title=f"{document['suite']}, {videos}, intervals over {over}")
    for video in document["videos"]:
        shown.add_row(video["video"], *[_percent(video["scores"].get(n)) for n in labels])
    shown.add_section()
    found = [document["scores"][name] for name in labels]
    shown.add_row("all", *[_percent(one["mean"]) for one in found], style="bold")
    shown.add_row("95 % interval", *map(_interval, labels, found))
    return shown


def _interval(label: str, found: Row) -> str:
    """Return an interval as the table prints it; that of two clusters is no more than wide."""
    low, high = found["low"], found["high"]
    if low is None or found["clusters"] < SURE_FROM:
        return NO_VALUE
    if label.partition("[")[0] in WITHIN_ONE:
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{100 * low:.2f} to {100 * high:.2f}"


def unscored(document: Row) -> list[str]:
    """Return a line for each video that has no score at all, with the reason."""
    lines = []
    for video in document["videos"]:
        why = video["reason"]
        if isinstance(why, dict) and all(value is None for value in video["scores"].values()):
            why = f"{video['video']} has no score: {'; '.join(dict.fromkeys(why.values()))}"
        if isinstance(why, str):
            lines.append(why)
    return lines


def without_some(document: Row) -> list[str]:
    """Return a line for each reason why a video that has other scores lacks one, with how many lack it."""
    lacking: dict[str, list[str]] = defaultdict(list)
    for video in document["videos"]:
        if any(value is not None for value in video["scores"].values()):
            for name, reason in (video["reason"] or {}).items():
                told = reason if reason.startswith(name) else f"{name}: {reason}"
                lacking[told].append(video["video"])
    return [
        f"{names[0] if len(names) == 1 else counted(len(names), 'video')}: no {told}"
        for told, names in lacking.items()
    ]


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{100 * value:.2f}"


def in_frames(bins: Sequence[Sequence[float]], frames: int) -> list[list[float]]:
    """Return bins that count evidence, of which a frame may be half or none, as bins of frames."""
    stretch = frames / (bins[-1][1] + 1)
    return [
        [round(first * stretch), max(round(first * stretch), round((last + 1) * stretch) - 1), mean]
        for first, last, mean in bins
    ]


def plot(document: Row, path: Path) -> None:
    """Draw every dimension over time within the video: where does it drift?"""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(n for video in document["videos"] for n in video["series"]))
    if not names:
        return
    figure = Figure(figsize=(8, 2.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        label = next((n for n in document["scores"] if n.partition("[")[0] == name), name)
        for video in document["videos"]:
            bins = video["series"].get(name, [])
            bins = in_frames(bins, video["frames"]) if bins else []
            middle = [(first + last + 1) / 2 for first, last, _ in bins]
            means = [100 * mean for *_, mean in bins]
            axis.plot(middle, means, linewidth=1, alpha=0.7, label=video["video"])
        axis.set_ylabel("score x 100")
        axis.set_title(label, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("frame")
    if len(document["videos"]) <= 8:
        axes[0].legend(fontsize=7, loc="best")
    figure.savefig(path, dpi=110)
