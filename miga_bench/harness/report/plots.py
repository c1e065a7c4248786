"""The plots of a report: small pictures that stay readable on a phone, in colors that everybody tells apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from miga_bench.harness.report.comparisons import BETTER, WORSE, Comparison
from miga_bench.harness.report.curves import ReflectionCurve
from miga_bench.harness.report.document import Picture
from miga_bench.harness.report.measures import Measure
from miga_bench.metrics.statistics import SURE_FROM, Estimate

# Okabe and Ito's colors, without the yellow, which is too light for lines; then styles tell arms apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F6000")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GOOD, BAD, UNCLEAR, PAPER = "#00795C", "#B34700", "#6B6B6B", "#6B6B6B"
WIDTH, DPI, SHOWN = 3.7, 150, 370  # inches, dots per inch, pixels on the page
LOOK: Any = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # names are shown as they are, dollar signs too
}
Points = Sequence[tuple[float, Estimate]]


def _empty(title: str, height: float = 2.6) -> tuple[Any, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    return figure, axes


def _picture(figure: Any, name: str, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(f"{name}.png", buffer.getvalue(), alt, SHOWN)


def _axis_label(measure: Measure) -> str:
    return measure.unit or "value"


def _bar(found: Estimate, measure: Measure) -> tuple[float, list[list[float]] | None]:
    """Return a mean and the lengths of its bar, as printed; without one where tables give no interval."""
    assert found.mean is not None
    factor = measure.factor
    mean = found.mean * factor
    if found.low is None or found.high is None or found.clusters < SURE_FROM:
        return mean, None
    low, high = measure.within(found.low, found.high)
    return mean, [[max(mean - low * factor, 0)], [max(high * factor - mean, 0)]]


def setting_plot(
    name: str,
    measure: Measure,
    axis: str,
    families: Mapping[str, Points],
    paper: Sequence[tuple[float, float]],
    paper_name: str,
    off: Estimate | None,
    paper_axis: str = "paper, another model",
) -> Picture:
    """Draw a score over a setting, with the paper's curve on an axis of its own.

    Args:
        name: Of the file.
        measure: The score.
        axis: The setting's name.
        families: Ours.
        paper: Value of the setting, score in percent; empty where the paper has none.
        paper_name: Which model that is.
        off: Where the setting does not count: a line across.
        paper_axis: What the paper's axis is called.
    """
    with rc_context(LOOK):
        figure, axes = _empty(measure.title, 2.9)
        values = sorted({x for points in families.values() for x, _ in points})
        values = sorted({*values, *(x for x, _ in paper)})
        uneven = max(values) > 20 * min((v for v in values if v > 0), default=1)
        # values over several sizes stand at equal distances
        places = {v: float(i) if uneven else v for i, v in enumerate(values)}
        if off is not None:
            line = _bar(off, measure)[0]
            axes.axhline(line, color="#000000", linewidth=1, linestyle=":", label="off (ours)")
        for number, (family, points) in enumerate(families.items()):
            color = COLORS[number % len(COLORS)]
            means = [_bar(found, measure)[0] for _, found in points]
            axes.plot(
                [places[x] for x, _ in points],
                means,
                color=color,
                label=f"{family} (ours)",
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.5,
            )
            for x, found in points:
                mean, reach = _bar(found, measure)
                if reach is not None:
                    axes.errorbar(
                        [places[x]], [mean], yerr=reach, color=color, capsize=2.5, linewidth=1
                    )
        axes.set_xlabel(axis)
        axes.set_ylabel(f"ours, {_axis_label(measure)}")
        axes.set_xticks(list(places.values()), [f"{value:g}" for value in values])
        handles, labels = axes.get_legend_handles_labels()
        if paper:
            right = axes.twinx()
            right.spines["right"].set_visible(True)
            right.grid(False)
            right.plot(
                *zip(*((places[x], score) for x, score in paper), strict=True),
                color=PAPER,
                linestyle="--",
                marker="x",
                markersize=4.5,
                linewidth=1.2,
                label=paper_name,
            )
            right.set_ylabel(paper_axis, color=PAPER)
            right.tick_params(axis="y", colors=PAPER)
            handles += right.get_legend_handles_labels()[0]
            labels.append(paper_name)
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, fontsize=7.5, frameon=False
        )
        return _picture(figure, name, f"{measure.title} over {axis}, with 95 % intervals")


def time_plot(
    name: str, measure: Measure, arms: Mapping[str, Points], order: Sequence[str]
) -> Picture:
    """Draw a score along the video, a line per arm, with the interval of its mean.

    Args:
        name: Of the file.
        measure: The score.
        arms: Frame and mean, by arm.
        order: All arms of the run, which fixes their colors.
    """
    with rc_context(LOOK):
        figure, axes = _empty(measure.title, 2.6 + 0.16 * ((len(arms) + 2) // 3))
        means = []
        for arm, points in arms.items():
            color, style = _look(order.index(arm))
            frames = [frame for frame, _ in points]
            line = [_bar(found, measure)[0] for _, found in points]
            means += line
            axes.plot(frames, line, color=color, linestyle=style, label=arm)
            sure = [
                (f, *measure.within(e.low, e.high))
                for f, e in points
                if e.low is not None and e.high is not None and e.clusters >= SURE_FROM
            ]
            if sure:
                x, low, high = zip(*sure, strict=True)
                f = measure.factor
                axes.fill_between(
                    x,
                    [f * v for v in low],
                    [f * v for v in high],
                    color=color,
                    alpha=0.13,
                    linewidth=0,
                )
        # bands of few prompts are wide: the lines decide what is shown
        room = (max(means) - min(means)) or abs(max(means)) or 1.0
        axes.set_ylim(min(means) - 0.6 * room, max(means) + 0.6 * room)
        axes.set_xlabel("frame of the video")
        axes.set_ylabel(_axis_label(measure))
        figure.legend(loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
        return _picture(figure, name, f"{measure.title} along the video, by arm")


def _look(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]


def reflection_plot(name: str, arm: str, told: ReflectionCurve) -> Picture:
    """Draw the similarity that self-reflection watched in one video, and where it searched."""
    with rc_context(LOOK):
        figure, axes = _empty(arm, 2.8)
        axes.plot(*zip(*told.seen, strict=True), color="#56B4E9", linewidth=1, label="similarity")
        for points, marker, color, words in (
            (told.rejected, "x", BAD, "search, nothing better"),
            (told.accepted, "^", GOOD, "search, better taken"),
        ):
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    linestyle="",
                    marker=marker,
                    markersize=5,
                    color=color,
                    label=f"{words} ({len(points)})",
                )
        axes.set_xlabel("pass of the video")
        axes.set_ylabel("similarity")
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
        searches = len(told.rejected) + len(told.accepted)
        return _picture(figure, name, f"similarity over passes of {arm}: {searches} searches")


def cost_plot(
    name: str,
    measure: Measure,
    work: str,
    arms: Mapping[str, tuple[float, Estimate]],
    order: Sequence[str],
) -> Picture:
    """Draw a score over the work it took.

    Args:
        name: Of the file.
        measure: The score.
        work: What the work is counted in.
        arms: Work and mean, by arm.
        order: All arms of the run, which fixes their colors.
    """
    with rc_context(LOOK):
        figure, axes = _empty(measure.title, 2.6 + 0.16 * ((len(arms) + 2) // 3))
        for arm, (took, found) in arms.items():
            number = order.index(arm)
            mean, reach = _bar(found, measure)
            axes.errorbar(
                [took],
                [mean],
                yerr=reach,
                color=_look(number)[0],
                capsize=2.5,
                linewidth=1,
                linestyle="",
                marker=MARKERS[number % len(MARKERS)],
                markersize=5.5,
                label=arm,
            )
        works = [took for took, _ in arms.values()]
        if min(works) > 0 and max(works) / min(works) > 5:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(work)
        axes.set_ylabel(_axis_label(measure))
        figure.legend(loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
        return _picture(figure, name, f"{measure.title} over {work}, by arm")


def forest_plot(
    name: str, measure: Measure, baseline: str, arms: Mapping[str, Comparison]
) -> Picture:
    """Draw the paired difference of each arm from the baseline with its interval."""
    with rc_context(LOOK):
        figure, axes = _empty(f"{measure.title}, minus {baseline}", 1.15 + 0.24 * len(arms))
        reaches = [0.0]
        for place, found in enumerate(arms.values()):
            assert found.difference is not None
            color = {BETTER: GOOD, WORSE: BAD}.get(found.verdict, UNCLEAR)
            marker = {BETTER: "^", WORSE: "v"}.get(found.verdict, "o")
            middle = found.difference * measure.factor
            reaches.append(middle)
            sure = found.prompts >= SURE_FROM
            if sure and found.low is not None and found.high is not None:
                ends = [found.low * measure.factor, found.high * measure.factor]
                reaches += ends
                axes.plot(ends, [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
            axes.plot([middle], [place], marker=marker, color=color, markersize=5.5)
        axes.axvline(0, color="#000000", linewidth=0.8)
        room = 0.08 * (max(reaches) - min(reaches)) or 1.0
        axes.set_xlim(min(reaches) - room, max(reaches) + room)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
        way = {"higher": "right is better", "lower": "left is better", None: "right moves more"}
        axes.set_xlabel(f"difference, {way[measure.better]}")
        return _picture(figure, name, f"paired differences from {baseline} in {measure.title}")
