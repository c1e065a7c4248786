"""The tables of a report: scores beside the paper's, differences, claims, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from miga_bench.harness.costs import ArmCost
from miga_bench.harness.report.claims import DOES_NOT_HOLD, HOLDS, Finding
from miga_bench.harness.report.comparability import paper_backbones, why_not_comparable
from miga_bench.harness.report.comparisons import (
    BETTER,
    NOT_SHOWN,
    SIGNIFICANT,
    WORSE,
    Comparison,
)
from miga_bench.harness.report.document import Block, Cell, Group, Paragraph, Table, Tone
from miga_bench.harness.report.measures import (
    MINUS,
    Measure,
    base_of,
    labels_of,
    mean_over,
    motion_of,
)
from miga_bench.harness.report.published import PublishedTable
from miga_bench.harness.report.scoring import NO_QUALITY, lacks_quality
from miga_bench.harness.results import Results
from miga_bench.metrics.statistics import Estimate

GROUPS = {
    "vbench": "VBench's scores",
    "world": "What the embedded world's reader says",
    "narrlv": "NarrLV's scores",
    "other": "Other scores",
}
_TONES: dict[str, Tone] = {BETTER: "good", HOLDS: "good", WORSE: "bad", DOES_NOT_HOLD: "bad"}


def mean_of(run: Results, arm: str, label: str) -> Estimate:
    """Return an arm's mean with its interval over prompts; videos without a score are counted out."""
    return mean_over(run, run.of(arm), label)


def caption_of(run: Results, group: str) -> str:
    """Return what stands above a group's table."""
    caption = GROUPS.get(group, f"Other scores: {group}")
    return f"{caption}, {NO_QUALITY}" if group == "narrlv" and lacks_quality(run) else caption


def columns_by_group(measures: Sequence[Measure]) -> dict[str, list[Measure]]:
    """Return what each table shows; motion stands in every one, for it explains the others."""
    groups: dict[str, list[Measure]] = {}
    for measure in measures:
        groups.setdefault(measure.group, []).append(measure)
    motion = motion_of(measures)
    for columns in groups.values():
        if motion is not None and motion not in columns:
            columns.append(motion)
    return groups


def score_table(
    runs: Sequence[Results], columns: Sequence[Measure], caption: str, paper: PublishedTable | None
) -> Table:
    """Return scores by arm, the paper's rows first.

    Args:
        runs: One, or several that share a published table.
        columns: The scores; those of several runs are matched without their networks.
        caption: Of the table.
        paper: The published table; None for none.
    """
    groups: list[Group] = []
    shared = paper is not None and any(m.column in paper.columns for m in columns)
    if paper is not None and shared:
        shown = list(dict.fromkeys(b for run in runs for b in paper_backbones(run, paper)))
        groups += [_paper_group(paper, backbone, columns) for backbone in shown]
    for run in runs:
        labels = _labels(run, columns)
        rows = [_arm_row(run, arm, columns, labels) for arm in run.arms]
        where = f"Ours: {run.model['backbone']}"
        label = f"{where}, run {run.name}" if len(runs) > 1 else where if shared else ""
        groups.append(Group(label, rows))
        if paper is not None and shared:
            for backbone in paper_backbones(run, paper):
                difference = _difference_group(run, paper, backbone, columns, labels)
                groups += [difference] if difference.rows else []
    heads = [f"{m.title}, {_unit(m)}" if _unit(m) else m.title for m in columns]
    return Table(caption, ["", "videos, (prompts)", *heads], groups)


def _unit(measure: Measure) -> str:
    way = {"higher": "higher is better", "lower": "lower is better", None: "motion"}
    return ", ".join(part for part in (measure.unit, way[measure.better]) if part)


def _labels(run: Results, columns: Sequence[Measure]) -> dict[str, str]:
    """Return the label that the run's videos carry for each column."""
    labels = labels_of(run)
    by_base = {base_of(label): label for label in sorted(labels, reverse=True)}
    return {m.label: m.label if m.label in labels else by_base.get(m.base, "") for m in columns}


def _paper_group(paper: PublishedTable, backbone: str, columns: Sequence[Measure]) -> Group:
    rows = []
    for arm, row in paper.of(backbone).items():
        cells = [
            Cell(f"{row.scores[m.column]:.2f}" if m.column in row.scores else MINUS)
            for m in columns
        ]
        rows.append([Cell(arm), Cell("not given", tone="quiet"), *cells])
    return Group(f"Paper: {paper.name}, {backbone}", rows)


def _arm_row(
    run: Results, arm: str, columns: Sequence[Measure], labels: Mapping[str, str]
) -> list[Cell]:
    done = [row for row in run.of(arm) if row.status == "done"]
    prompts = len({row.cluster for row in done})
    cells = [Cell(arm), Cell(f"{len(done)} ({prompts})")]
    for measure in columns:
        found = mean_of(run, arm, labels[measure.label])
        parts = [measure.interval(found.low, found.high, found.clusters)]
        if found.n != len(done):
            parts.append(f"n = {found.n}")
        cells.append(Cell(measure.number(found.mean), "\n".join(part for part in parts if part)))
    return cells


def _difference_group(
    run: Results,
    paper: PublishedTable,
    backbone: str,
    columns: Sequence[Measure],
    labels: Mapping[str, str],
) -> Group:
    theirs, rows = paper.of(backbone), []
    alike = not why_not_comparable(run, paper, backbone, columns)
    for arm in run.arms:
        if arm not in theirs:
            continue
        cells = []
        for measure in columns:
            found = mean_of(run, arm, labels[measure.label])
            target = theirs[arm].scores.get(measure.column)
            if target is None or found.mean is None:
                cells.append(Cell(MINUS))
                continue
            off = target / measure.factor
            low, high = (
                end - off if alike and end is not None else None for end in (found.low, found.high)
            )
            shown, detail = measure.signed(found.mean - off, low, high, found.clusters)
            cells.append(Cell(shown, detail, "" if alike else "quiet"))
        rows.append([Cell(arm), Cell(""), *cells])
    # the paper's numbers come without an error of their own
    told = "the interval is of ours alone" if alike else "not comparable"
    return Group(f"Ours minus {backbone} ({told})", rows)


def verdict_table(
    comparisons: Mapping[str, Sequence[Comparison]], baseline: str, caption: str
) -> Table:
    """Return a verdict for each measure and arm.

    Args:
        comparisons: With the baseline, by arm; the same measures in all.
        baseline: The arm they are held against.
        caption: Of the table.
    """
    rows = []
    for of_measure in zip(*comparisons.values(), strict=True):
        measure = of_measure[0].measure
        cells = [Cell(measure.title, _unit(measure))]
        for found in of_measure:
            numbers = measure.signed(found.difference, found.low, found.high, found.prompts)
            detail = _lines(*numbers, at_equal_motion(found))
            cells.append(Cell(found.verdict, detail, _TONES.get(found.verdict, "quiet")))
        rows.append(cells)
    return Table(
        caption, ["", *(f"{arm}, against {baseline}" for arm in comparisons)], [Group("", rows)]
    )


def at_equal_motion(found: Comparison) -> str:
    """Say what becomes of a verdict at equal motion; empty where there is none, or nothing to say.

    A gain or a loss is always held against it, no difference where it turns into one.
    """
    equal, shown = found.equal, (BETTER, WORSE)
    if equal is None or not {found.verdict, equal.verdict} & {*shown}:
        return ""
    words = f"equal motion: {equal.verdict}"
    if equal.verdict == found.verdict:
        words = "also at equal motion"
    elif equal.verdict in shown:
        words = f"{equal.verdict} at equal motion"
    elif equal.verdict == NOT_SHOWN:
        words = "not shown at equal motion"
    return ", ".join(part for part in (words, _pairs_in_line(found)) if part)


def sign_test_note(names: Sequence[str]) -> list[Block]:
    """Return a sentence below a table on the verdicts that the sign test would not give; none for none.

    Args:
        names: What the sentence calls them.
    """
    if not names:
        return []
    words = (
        "The sign test, which only counts prompts up and down, would give no verdict (p above"
        f" {SIGNIFICANT}) in {'; '.join(names)}. It has less power than Student's t; but where most prompts are"
        " level, or a few decide, t is rough, and such a verdict is a hint."
    )
    return [Paragraph(words, "small")]


def _pairs_in_line(found: Comparison) -> str:
    """Return the number of pairs that equal motion was looked at in, where they are not the difference's."""
    equal = found.equal
    return f"n = {equal.n}" if equal is not None and equal.n < found.n else ""


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def difference_table(comparisons: Sequence[Comparison], caption: str) -> Table:
    """Return all numbers of one arm's differences from the baseline."""
    rows = []
    for found in comparisons:
        measure, equal = found.measure, found.equal
        at_equal = Cell(MINUS)
        if equal is not None and equal.difference is None:
            at_equal = Cell(equal.verdict, _pairs_in_line(found), "quiet")
        elif equal is not None:
            numbers = measure.signed(equal.difference, equal.low, equal.high, found.prompts)
            at_equal = Cell(numbers[0], _lines(numbers[1], _pairs_in_line(found)))
        detail = f"{found.dropped} without a score" if found.dropped else ""
        rows.append(
            [
                Cell(measure.title, measure.unit),
                Cell(*measure.signed(found.difference, found.low, found.high, found.prompts)),
                Cell(f"{found.n} ({found.prompts})", detail),
                Cell(f"{found.wins} / {found.losses}"),
                Cell(_p(found.p) if found.n else MINUS),
                Cell(found.verdict, "", _TONES.get(found.verdict, "quiet")),
                at_equal,
            ]
        )
    head = [
        "",
        "difference, 95 % interval",
        "pairs, (prompts)",
        "prompts up / down",
        "sign test, p",
    ]
    return Table(caption, [*head, "verdict", "at equal motion, 95 % interval"], [Group("", rows)])


def claim_table(findings: Sequence[Finding], caption: str) -> Table:
    """Return what the run says of each claim."""
    rows = []
    for found in findings:
        measure, compared = found.comparison.measure, found.comparison
        paper = [
            f"{value:+.2f} ({name}{'' if name in found.alike else ', not comparable'})"
            for name, value in found.claim.paper().items()
        ]
        rows.append(
            [
                Cell(found.claim.text, measure.title),
                Cell(found.verdict, at_equal_motion(compared), _TONES.get(found.verdict, "quiet")),
                Cell(
                    *measure.signed(
                        compared.difference,
                        compared.low,
                        compared.high,
                        compared.prompts,
                    )
                ),
                Cell(f"{compared.n} ({compared.prompts})"),
                Cell(paper[0], "\n".join(paper[1:])) if paper else Cell(MINUS),
            ]
        )
    head = [
        "claim",
        "here",
        "difference, 95 % interval",
        "pairs, (prompts)",
        "the paper's difference",
    ]
    return Table(caption, head, [Group("", rows)])


def cost_table(costs: Mapping[str, ArmCost], caption: str) -> Table:
    """Return what the videos of each arm took."""
    rows = []
    for arm, cost in costs.items():
        flops = None if cost.flops_per_frame is None else cost.flops_per_frame / 1e9
        # the GPU's where there is one; the process's holds the program too
        memory = cost.memory_mib.get("gpu", cost.memory_mib.get("process"))
        where = "GPU" if "gpu" in cost.memory_mib else "process"
        rows.append(
            [
                Cell(arm),
                Cell(_plain(cost.nfe, 0)),
                Cell(_plain(cost.nfe_per_frame, 2)),
                Cell(_plain(cost.latents_per_frame, 1)),
                Cell(_plain(flops, 2)),
                Cell(_plain(cost.seconds_per_frame, 3)),
                Cell(_plain(memory, 0), where if memory is not None else ""),
                Cell(_percent(cost.triggered)),
                Cell(_percent(cost.accepted)),
                Cell(_percent(cost.search_share)),
                Cell(_percent(cost.skipped)),
            ]
        )
    head = [
        "",
        "NFE, per video",
        "NFE, per frame",
        "latents, per frame",
        "GFLOP, per frame",
        "seconds, per frame",
        "peak memory, MiB",
        "searches, of judged passes",
        "accepted, of searches",
        "windows, spent on searches",
        "cut short by the cache, of NFE",
    ]
    return Table(caption, head, [Group("", rows)])


def stage_table(costs: Mapping[str, ArmCost], caption: str) -> Table:
    """Return where each arm's time went."""
    stages = list(dict.fromkeys(stage for cost in costs.values() for stage in cost.seconds))
    rows = [
        [Cell(arm), *(Cell(_plain(cost.seconds.get(stage), 4)) for stage in stages)]
        for arm, cost in costs.items()
    ]
    return Table(caption, ["", *stages], [Group("", rows)])


def paper_cost_table(tables: Sequence[PublishedTable], caption: str) -> Table:
    """Return the paper's numbers of cost."""
    rows = [
        [Cell(row.arm), Cell(row.backbone), Cell(table.title), Cell(f"{value:g}"), Cell(table.unit)]
        for table in tables
        for row in table.rows
        for value in row.scores.values()
    ]
    return Table(caption, ["", "model", "what", "value", "unit"], [Group("", rows)])


def glossary(measures: Sequence[Measure], collapses: Sequence[str] = ()) -> Table:
    """Return what the measures mean.

    Args:
        measures: All that the report shows.
        collapses: By which rules a cell of NarrLV's is one number of three.
    """
    rows = []
    for m in measures:
        meaning = m.meaning
        if m.base.startswith("narrlv/tna"):
            rule = " or ".join(collapses) or "a rule that the run does not say"
            meaning = f"fid, cov and coh of the stories of this cell as one number, by: {rule}"
        rows.append([Cell(m.title), Cell(meaning or MINUS), Cell(_unit(m))])
    return Table(
        "What the measures mean", ["measure", "what it tells", "how to read"], [Group("", rows)]
    )


def _plain(value: float | None, digits: int) -> str:
    return MINUS if value is None else f"{value:,.{digits}f}"


def _p(value: float) -> str:
    """Return a probability; one that is small is not printed as none."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _percent(value: float | None) -> str:
    return MINUS if value is None else f"{100 * value:.1f} %"
