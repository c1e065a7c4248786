"""Which pictures a run gets, and what stands above them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from miga_bench.harness.costs import ArmCost, searches
from miga_bench.harness.report import plots
from miga_bench.harness.report.comparability import paper_backbones
from miga_bench.harness.report.comparisons import Comparison
from miga_bench.harness.report.curves import (
    along_axis,
    over_time,
    reflection_of,
    timed_measures,
    without_reflection,
)
from miga_bench.harness.report.document import Block, Figures, Heading, Paragraph
from miga_bench.harness.report.measures import COSTS, Measure
from miga_bench.harness.report.published import PublishedTable
from miga_bench.harness.report.scoring import scored_by_clips
from miga_bench.harness.report.sheets import sheet, shown_pairs
from miga_bench.harness.report.tables import mean_of
from miga_bench.harness.results import Results

MOST_ARMS = 6  # timelines of reflection
FIRST_DRIFTS = ("world/hue_drift", "world/pattern_drift")


def contact_sheets(run: Results, prefix: str, prompts: int) -> list[Block]:
    """Return the videos of the first prompts side by side."""
    blocks: list[Block] = []
    texts = {row.prompt_id: row.prompt for row in run.rows}
    for pair in shown_pairs(run, prompts):
        name = f"{prefix}-sheet-{slug(pair[0])}-{pair[1]}"
        caption = f"{pair[0]}, seed {pair[1]}: {texts[pair[0]]}"
        blocks.append(Figures(caption, [sheet(run, pair, name)]))
    if blocks:
        words = (
            "The first prompts of the list, not chosen by result; the same seed and the same moments in"
            " every row. A gray picture is a moment that the video does not reach."
        )
        blocks = [Heading(3, "What it looks like"), Paragraph(words, "small"), *blocks]
    return blocks


def axis_curves(
    run: Results, prefix: str, measures: Sequence[Measure], paper: PublishedTable | None
) -> list[Block]:
    """Return the scores over the setting that the run varies."""
    axis = run.about.get("axis")
    if not axis:
        return []
    pictures = []
    shown = [*COSTS, *_leading(measures)] if axis == "frames" else _leading(measures)
    same = paper is not None and run.model["backbone"] in paper_backbones(run, paper)[:1]
    for measure in shown:
        families = along_axis(run, axis, measure)
        if sum(map(len, families.values())) < 2:
            continue
        theirs: list[tuple[float, float]] = []
        name = ""
        if paper is not None and paper.axis == axis and measure.column in paper.columns:
            backbone = paper_backbones(run, paper)[0]
            rows = paper.of(backbone).values()
            theirs = [(row.at, row.scores[measure.column]) for row in rows if row.at is not None]
            name = f"paper, {backbone}"
        file = f"{prefix}-curve-{slug(measure.label)}"
        pictures.append(
            plots.setting_plot(
                file,
                measure,
                axis,
                families,
                theirs,
                name,
                without_reflection(run, axis, measure),
                "paper" if same else "paper, another model",
            )
        )
    if not pictures:
        return []
    words = f"Means over {axis} with 95 % intervals over prompts."
    if paper is not None and paper.axis == axis:
        words += (
            " The dashed curve is the paper's, on an axis of its own (right); whether it was made as ours is"
            " said below the scores."
            if same
            else " The dashed curve is the paper's, of another model and on an axis of its own (right):"
            " compare shapes, not heights."
        )
    return [Heading(3, f"Over {axis}"), Figures(words, pictures)]


def drift_curves(run: Results, prefix: str) -> list[Block]:
    """Return the scores along the videos."""
    pictures = []
    for measure in timed_measures(run):
        arms = {arm: over_time(run, arm, measure.label) for arm in run.arms}
        arms = {arm: points for arm, points in arms.items() if points}
        file = f"{prefix}-time-{slug(measure.label)}"
        pictures.append(plots.time_plot(file, measure, arms, list(run.arms)))
    if not pictures:
        return []
    words = (
        "Means over videos; the bands are 95 % intervals over prompts (from three prompts on, cut where they"
        " are wider than the picture)."
    )
    if scored_by_clips(run):
        words += (
            " VBench-Long scores every clip by itself: its curves show where a score is low, not how"
            " far it has gone from its opening."
        )
    return [Heading(3, "Over the time of the video"), Figures(words, pictures)]


def reflection_timelines(run: Results, prefix: str, prompts: int) -> list[Block]:
    """Return what self-reflection saw in the first video that is shown, by arm."""
    pictures = []
    pairs = shown_pairs(run, max(1, prompts))
    for arm in [arm for arm in run.arms if searches(run, arm)][:MOST_ARMS]:
        row = next((r for r in run.of(arm) if r.pair == pairs[0] and r.status == "done"), None)
        told = None if row is None else reflection_of(row)
        if told is not None and told.seen:
            pictures.append(plots.reflection_plot(f"{prefix}-reflection-{slug(arm)}", arm, told))
    if not pictures:
        return []
    prompt, seed = pairs[0]
    words = (
        f"Similarity that self-reflection watched, pass by pass, in the video of {prompt}, seed {seed}. A drop"
        " beyond the threshold begins a search."
    )
    return [Heading(3, "Self-reflection"), Figures(words, pictures)]


def cost_scatter(
    run: Results, prefix: str, measures: Sequence[Measure], costs: Mapping[str, ArmCost]
) -> list[Block]:
    """Return quality over work: evaluations, operations where a cache cut some evaluations short."""
    pictures = []
    cached = any(cost.skipped is not None for cost in costs.values())
    work = "GFLOP per frame" if cached else "denoiser evaluations per frame"
    for measure in _leading(measures):
        arms = {}
        for arm, cost in costs.items():
            found = mean_of(run, arm, measure.label)
            took = cost.nfe_per_frame
            if cached:
                took = None if cost.flops_per_frame is None else cost.flops_per_frame / 1e9
            if took is not None and found.n:
                arms[arm] = (took, found)
        if arms:
            file = f"{prefix}-cost-{slug(measure.label)}"
            pictures.append(plots.cost_plot(file, measure, work, arms, list(run.arms)))
    words = "Quality over work: means with 95 % intervals over prompts."
    return [Figures(words, pictures)] if pictures else []


def forests(
    prefix: str, baseline: str, comparisons: Mapping[str, Sequence[Comparison]]
) -> list[Block]:
    """Return the paired differences of all arms, a picture per measure."""
    if len(comparisons) < 2:
        return []
    pictures = []
    for of_measure in zip(*comparisons.values(), strict=True):
        arms = {
            a: f for a, f in zip(comparisons, of_measure, strict=True) if f.difference is not None
        }
        # where all are alike there is nothing to see
        if any(found.difference for found in arms.values()):
            measure = of_measure[0].measure
            file = f"{prefix}-forest-{slug(measure.label)}"
            pictures.append(plots.forest_plot(file, measure, baseline, arms))
    words = (
        f"Paired differences from {baseline} with 95 % intervals over prompts: triangles that point up"
        " are better, down worse, dots not shown or motion."
    )
    return [Figures(words, pictures)] if pictures else []


def _leading(measures: Sequence[Measure]) -> Iterator[Measure]:
    """Yield what a reader looks at first: consistency, the world's drifts, and motion beside them."""
    for measure in measures:
        first = measure.group == "vbench" and measure.base != "temporal_flickering"
        if (
            first
            or measure.is_motion
            or measure.base in FIRST_DRIFTS
            or measure.group in ("narrlv", "other")
        ):
            yield measure


def slug(text: str) -> str:
    """Return text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
