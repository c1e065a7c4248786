"""One run's part of a report: what was asked, what was run, what came out, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miga_bench.errors import UserError, near
from miga_bench.harness.costs import ArmCost, cost_of, machines
from miga_bench.harness.report import pictures, tables
from miga_bench.harness.report.again import configuration_of
from miga_bench.harness.report.claims import DOES_NOT_HOLD, HOLDS, Finding, check_claims
from miga_bench.harness.report.comparability import comparability
from miga_bench.harness.report.comparisons import Comparison, compare
from miga_bench.harness.report.differences import NAMED, differences, verdicts_in_words
from miga_bench.harness.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Fold,
    Group,
    Heading,
    Paragraph,
    Table,
)
from miga_bench.harness.report.measures import Measure, asked, measures_of, motion_of
from miga_bench.harness.report.published import PublishedTable, published_table, published_tables
from miga_bench.harness.report.scoring import collapses
from miga_bench.harness.results import Results, Row

CHANGING = (
    "The prompts ask for a change along the video. Scores of consistency and drifts from the opening count a"
    " change that was asked for as a fault, so that a video that stands by its opening and does not do as asked"
    " scores best in them: they rank no arms here, and the paper's claims about them are not looked at."
)
OWN_PROMPTS = (
    "A video is scored by those of VBench's dimensions that its prompt is for, as VBench does: n counts a"
    " score's own videos. The overall score is the mean of the four means; its interval sums what each prompt"
    " adds to them, and its n and its prompts are those of the score that has the fewest. In it a prompt goes"
    " up or down by what it has of the four."
)


@dataclass(frozen=True)
class RunFacts:
    """A run's numbers, before anything is written.

    Attributes:
        run: The run.
        measures: Its scores.
        baseline: The arm that others are held against.
        comparisons: With the baseline, by arm.
        claims: Of the paper.
        costs: By arm.
        paper: The published table it stands beside.
    """

    run: Results
    measures: Sequence[Measure]
    baseline: str
    comparisons: Mapping[str, Sequence[Comparison]]
    claims: Sequence[Finding]
    costs: Mapping[str, ArmCost]
    paper: PublishedTable | None


def title_of(run: Results) -> str:
    """Return what a run is called."""
    return str(run.about.get("title") or run.name)


def gather(run: Results, baseline: str | None = None) -> RunFacts:
    """Compute a run's numbers.

    Args:
        run: With at least one video that is done.
        baseline: An arm; by default the run's own, or its first.

    Raises:
        UserError: There is no such arm, or no such published table.
    """
    wanted = baseline or run.about.get("baseline") or next(iter(run.arms))
    if wanted not in run.arms:
        raise UserError(f"{run.name} has no arm {wanted!r}: {near(wanted, run.arms)}")
    measures = measures_of([run])
    motion = motion_of(measures)
    comparisons = {
        arm: [compare(run, {arm: 1, wanted: -1}, measure, motion) for measure in measures]
        for arm in run.arms
        if arm != wanted
    }
    paper = run.about.get("published")
    return RunFacts(
        run,
        measures,
        wanted,
        comparisons if measures else {},
        check_claims(run, measures),
        {arm: cost_of(run, arm) for arm in run.arms},
        published_table(paper) if paper else None,
    )


def section(facts: RunFacts, prefix: str, prompts_shown: int) -> list[Block]:
    """Return a run's part of the report.

    Args:
        facts: The run's numbers.
        prefix: Of the names of its pictures and its configuration.
        prompts_shown: How many prompts get a contact sheet.
    """
    run = facts.run
    question = run.about.get("question")
    return [
        Heading(2, title_of(run)),
        *([Paragraph(str(question), "lead")] if question else []),
        Heading(3, "In short"),
        Bullets(_in_short(facts)),
        *_what_was_run(run),
        *pictures.contact_sheets(run, prefix, prompts_shown),
        *_scores(facts),
        *differences(run, facts.baseline, facts.comparisons, facts.measures, prefix),
        *_claims(facts.claims),
        *pictures.axis_curves(run, prefix, facts.measures, facts.paper),
        *pictures.drift_curves(run, prefix),
        *pictures.reflection_timelines(run, prefix, prompts_shown),
        *_cost(facts, prefix),
        *_missing(run, facts.measures),
        *_remake(run, prefix),
    ]


def _in_short(facts: RunFacts) -> list[str]:
    run = facts.run
    done = sum(row.status == "done" for row in run.rows)
    lost = {s: sum(row.status == s for row in run.rows) for s in ("failed", "missing")}
    told = ", ".join(f"{count} {status}" for status, count in lost.items() if count)
    out = [
        f"{done} of {len(run.rows)} videos are done" + (f"; {told}, named below." if told else ".")
    ]
    if not facts.measures:
        out.append("No video has been scored yet.")
    for arm, found in facts.comparisons.items():
        names = len(facts.comparisons) <= NAMED
        out.append(verdicts_in_words(arm, facts.baseline, found, names))
    if facts.claims:
        holds = sum(c.verdict == HOLDS for c in facts.claims)
        against = sum(c.verdict == DOES_NOT_HOLD for c in facts.claims)
        rest = len(facts.claims) - holds - against
        out.append(
            f"Claims of the paper that can be looked at here: {len(facts.claims)}, of which hold: {holds};"
            f" do not hold: {against}; not shown: {rest}."
        )
    return out


def _what_was_run(run: Results) -> list[Block]:
    prompts = {row.prompt_id: row.prompt for row in run.rows}
    seeds = sorted({row.seed for row in run.rows})
    done = [row for row in run.rows if row.status == "done"]
    frames = sorted({row.frames for row in done})
    rates = sorted({row.frame_rate for row in done if row.frame_rate})
    size = (run.model["width"], run.model["height"])
    facts = {
        "run": run.name,
        "backbone": run.model["backbone"],
        "given as": _path_of(run),
        "weights, SHA-256": run.model["weights_hash"] or "not given",
        "precision": run.model["precision"],
        "size": f"{size[0]} x {size[1]} pixels" if None not in size else None,
        "frames": " or ".join(map(str, frames)),
        "frames a second": " or ".join(f"{rate:g}" for rate in rates),
        "arms": len(run.arms),
        "prompts": len({row.cluster for row in run.rows}),
        "seeds": ", ".join(map(str, seeds)),
    }
    arms = [
        [Cell(name), Cell(arm.method), Cell(_settings(arm.changed) or "as all arms")]
        for name, arm in run.arms.items()
    ]
    caption = "Arms, and the settings that are not the same in all of them"
    return [
        Heading(3, "What was run"),
        _pairs_table("The run", facts),
        Table(caption, ["arm", "method", "settings"], [Group("", arms)]),
        Fold(f"Prompts: {len(prompts)}", [Bullets([f"{n}: {t}" for n, t in prompts.items()])]),
    ]


def _settings(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changed.items() if name != "method")


def _path_of(run: Results) -> str | None:
    """Return where the last command found the model, None where its name says it."""
    given = (run.configuration.get("model") or {}).get("backbone")
    return given if isinstance(given, str) and given != run.model["backbone"] else None


def _pairs_table(caption: str, facts: Mapping[str, Any]) -> Table:
    rows = [[Cell(n), Cell(str(value))] for n, value in facts.items() if value not in (None, "")]
    return Table(caption, ["", "value"], [Group("", rows)])


def _scores(facts: RunFacts) -> list[Block]:
    if not facts.measures:
        return []
    run, paper = facts.run, facts.paper
    blocks: list[Block] = [
        Heading(3, "Scores"),
        Paragraph(
            "Mean over videos; below it the 95 % interval (Student's t, clustered by prompt; from three prompts"
            " on). It holds for the noise of these seeds, which all prompts share. Motion stands beside"
            " consistency, for every score of consistency rewards a video that stands still.",
            "small",
        ),
    ]
    for group, columns in tables.columns_by_group(facts.measures).items():
        caption = tables.caption_of(run, group)
        blocks.append(tables.score_table([run], columns, caption, paper))
        if paper is not None and any(m.column in paper.columns for m in columns):
            blocks.append(Paragraph(comparability(run, paper, columns), "small"))
    if run.dimensions:
        blocks.append(Paragraph(OWN_PROMPTS, "small"))
    if run.changing:
        blocks.append(Paragraph(CHANGING, "small"))
    blocks.append(Fold("What the measures mean", [tables.glossary(facts.measures, collapses(run))]))
    return blocks


def _claims(findings: Sequence[Finding]) -> list[Block]:
    if not findings:
        return []
    words = (
        "Those claims whose arms and measure are in this run, judged as the differences above: holds, and"
        " does not hold, need an interval without zero. On another model than the paper's they say whether"
        " the claim carries over, not whether the paper's numbers are right."
    )
    return [
        Heading(3, "Claims of the paper"),
        Paragraph(words, "small"),
        tables.claim_table(findings, "Claims"),
        *tables.sign_test_note([f.claim.text for f in findings if f.comparison.by_t_alone]),
    ]


def _cost(facts: RunFacts, prefix: str) -> list[Block]:
    hardware = facts.run.provenance.get("hardware") or {}
    told = ", ".join(str(hardware[n]) for n in ("gpu", "cpu") if hardware.get(n)) or "unknown"
    found = machines(facts.run)
    if len(found) > 1:
        told = "several machines"
    elif any(found):
        (told,) = found
    words = (
        "NFE counts evaluations of the denoiser, both halves of guidance apart. Seconds are from start to end"
        f" of each video on {told}; other work on the machine lengthens them. Numbers per frame are sums over"
        " an arm's videos, divided by all their frames; claims compare each video's own, so that where lengths"
        " differ their differences need not be this table's."
    )
    blocks: list[Block] = [
        Heading(3, "Cost"),
        Paragraph(words, "small"),
        *([Paragraph(_several_machines(found))] if len(found) > 1 else []),
        tables.cost_table(facts.costs, "What a video took, by arm"),
    ]
    if any(cost.seconds for cost in facts.costs.values()):
        stages = tables.stage_table(facts.costs, "Seconds per frame by stage")
        blocks.append(Fold("Seconds per frame by stage", [stages]))
    if facts.paper is not None and facts.paper.key == "efficiency":
        theirs = [facts.paper, published_tables()["efficiency_memory"]]
        caption = f"The paper's numbers ({facts.paper.name}): {facts.paper.conditions}"
        blocks.append(tables.paper_cost_table(theirs, caption))
    return blocks + pictures.cost_scatter(facts.run, prefix, facts.measures, facts.costs)


def _several_machines(found: Mapping[str, int]) -> str:
    told = "; ".join(f"{count} on {name or 'unknown hardware'}" for name, count in found.items())
    return (
        f"Not all videos were made alike: {told}. Seconds and memory below are of all of them together, and say"
        " nothing of which arm is faster or smaller, and claims about them get no verdict. Evaluations, latents"
        " and operations do not depend on it."
    )


def _missing(run: Results, measures: Sequence[Measure]) -> list[Block]:
    """Name every video and every score that is not there."""
    lost = [row for row in run.rows if row.status != "done"]
    blocks: list[Block] = []
    if lost:
        rows = [
            [
                Cell(row.arm),
                Cell(f"{row.prompt_id}, seed {row.seed}"),
                Cell(row.status),
                Cell(row.error or "-"),
            ]
            for row in lost
        ]
        blocks.append(
            Table("Videos that are not there", ["arm", "video", "status", "why"], [Group("", rows)])
        )
    wanted = {measure.label: asked(run, measure.label) for measure in measures}
    by_reason: dict[tuple[str, str, str], list[Row]] = {}
    for row in run.rows:
        for measure in measures if row.status == "done" else ():
            if row.pair in wanted[measure.label] and row.scores.get(measure.label) is None:
                why = row.reasons.get(measure.label, "not scored")
                by_reason.setdefault((row.arm, measure.title, why), []).append(row)
    if by_reason:
        scores = [
            [
                Cell(arm),
                Cell(title),
                Cell(why),
                Cell("; ".join(f"{r.prompt_id}, seed {r.seed}" for r in rows)),
            ]
            for (arm, title, why), rows in by_reason.items()
        ]
        head = ["arm", "score", "why", "videos"]
        blocks.append(Table("Scores that are not there", head, [Group("", scores)]))
    words = "Not in any number above; differences leave out the whole pair."
    return [Heading(3, "What is missing"), Paragraph(words, "small"), *blocks] if blocks else []


def _commit(git: Mapping[str, Any]) -> str:
    changed = " with changes that were not committed" if git.get("changed") else ""
    return f"{git['commit']}{changed}" if git.get("commit") else "not known"


def _remake(run: Results, prefix: str) -> list[Block]:
    told = run.provenance
    hardware, found = told.get("hardware") or {}, machines(run)
    origins = [told, *(row.origin for row in run.rows if row.status == "done")]
    commits = dict.fromkeys(_commit(one["git"]) for one in origins if one.get("git"))
    numbers: dict[str, dict[str, None]] = {}
    for one in origins:
        for name, number in (one.get("versions") or {}).items():
            numbers.setdefault(name, {})[str(number)] = None
    facts = {
        "begun": told.get("started"),
        "commit": " or ".join(commits) or "not known",
        "versions": ", ".join(f"{name} {' or '.join(known)}" for name, known in numbers.items()),
        "hardware": ", ".join(f"{name} {value}" for name, value in hardware.items()),
        "videos made on": " or ".join(name or "unknown" for name in found)
        if len(found) > 1
        else "",
        "weights, SHA-256": run.model["weights_hash"] or "not given",
    }
    blocks: list[Block] = [
        Heading(3, "How to make it again"),
        _pairs_table("Where it comes from", facts),
        Paragraph(f"{prefix}.csv, beside this page, holds each video's numbers.", "small"),
    ]
    if run.configuration:
        model = run.configuration.get("model") or {}
        verb = "experiment" if model.get("arms") or model.get("grid") else "predict"
        kind, _, folder = str(model.get("denoiser") or "").partition(":")
        export = f"miga-bench export onnx {model.get('backbone')} -o {folder}\n"
        blocks += [
            Code(
                (export if kind == "onnx" else "") + f"miga-bench {verb} --config {prefix}.yaml",
                "sh",
            ),
            Fold(f"{prefix}.yaml", [Code(configuration_of(run), "yaml")]),
        ]
    return blocks
