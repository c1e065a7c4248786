"""Reads runs, writes report.html, report.md, their pictures and each video's numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError
from miga_bench.harness.files import write_text
from miga_bench.harness.report import tables
from miga_bench.harness.report.again import configuration_of
from miga_bench.harness.report.comparability import comparability
from miga_bench.harness.report.document import Block, Heading, Paragraph, pictures_of
from miga_bench.harness.report.html import to_html
from miga_bench.harness.report.markdown import to_markdown
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.published import published_table
from miga_bench.harness.report.request import FIGURES, HTML, MARKDOWN, ReportRequest
from miga_bench.harness.report.section import (
    RunFacts,
    gather,
    section,
    title_of,
)
from miga_bench.harness.results import Results, check_items_are_there, read_results
from miga_bench.harness.video_table import to_csv, video_table


def write_report(request: ReportRequest) -> dict[str, Any]:
    """Write the report of some runs.

    Args:
        request: Which runs, and where to.

    Returns:
        The paths, under ``html``, ``markdown`` and ``figures``, and the key numbers of each run.

    Raises:
        UserError: A folder is no run, no video of it is done, or the output exists.
    """
    request.check()
    runs = [_read(folder) for folder in request.runs]
    facts = [gather(run, request.baseline) for run in runs]
    title = title_of(runs[0]) if len(runs) == 1 else f"{len(runs)} runs"
    blocks: list[Block] = [Heading(1, title)]
    if len(runs) > 1:
        blocks += _combined(facts)
    prefixes = _prefixes(runs)
    for found, prefix in zip(facts, prefixes, strict=True):
        part = section(found, prefix, request.prompts_shown)
        blocks += part if len(runs) > 1 else part[1:]  # the page's title is the run's
    _write(request.output, blocks, title, dict(zip(prefixes, runs, strict=True)))
    return {
        "html": str(request.output / HTML),
        "markdown": str(request.output / MARKDOWN),
        "figures": str(request.output / FIGURES),
        "runs": [_numbers(found) for found in facts],
    }


def _read(folder: Path) -> Results:
    run = read_results(folder)
    check_items_are_there(run)
    if not any(row.status == "done" for row in run.rows):
        raise UserError(
            f"{folder} has no video that is done ({len(run.rows)} are wanted): make the run first"
        )
    return run


def _prefixes(runs: Sequence[Results]) -> list[str]:
    """Return a name for each run's files; runs of one name below several roots get numbers."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name}-{number}"
        for number, name in enumerate(names, 1)
    ]


def _combined(facts: Sequence[RunFacts]) -> list[Block]:
    """Return a table for each published table that several runs share."""
    blocks: list[Block] = []
    keys = [found.paper.key for found in facts if found.paper is not None]
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        paper = published_table(key)
        sharing = [f for f in facts if f.paper is not None and f.paper.key == key]
        bases = list(dict.fromkeys(m.base for f in sharing for m in f.measures))
        columns = [m for m in map(measure_of, bases) if m.column in paper.columns or m.is_motion]
        if not columns:
            continue
        caption = f"{paper.title}: {', '.join(f.run.name for f in sharing)}, beside the paper"
        blocks.append(Heading(2, f"All runs beside {paper.name}"))
        blocks.append(tables.score_table([f.run for f in sharing], columns, caption, paper))
        blocks += [
            Paragraph(f"{f.run.name}: {comparability(f.run, paper, f.measures)}", "small")
            for f in sharing
        ]
    return blocks


def _write(folder: Path, blocks: Sequence[Block], title: str, runs: dict[str, Results]) -> None:
    """Write the pages last: a report that is there is whole. Of one before, its own pictures go."""
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for name in _pictures_before(folder / MARKDOWN):
        (figures / name).unlink(missing_ok=True)
    for picture in pictures_of(blocks):
        (figures / picture.name).write_bytes(picture.data)
    for prefix, run in runs.items():
        if run.configuration:
            write_text(folder / f"{prefix}.yaml", configuration_of(run))
        write_text(folder / f"{prefix}.csv", to_csv(video_table(run.rows)))
    write_text(folder / MARKDOWN, to_markdown(blocks, FIGURES))
    write_text(folder / HTML, to_html(blocks, title))


def _pictures_before(page: Path) -> set[str]:
    """Return the names of the pictures that a report shows: others in their folder are the user's."""
    try:
        return set(re.findall(rf"\]\({FIGURES}/([\w.-]+)\)", page.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _numbers(found: RunFacts) -> dict[str, Any]:
    """Return a run's key numbers for the last line of output."""
    run = found.run
    return {
        "name": run.name,
        "videos": {
            status: sum(row.status == status for row in run.rows)
            for status in ("done", "failed", "missing")
        },
        "baseline": found.baseline,
        "arms": {
            arm: {
                m.label: {
                    name: value
                    for name, value in asdict(tables.mean_of(run, arm, m.label)).items()
                    if name in ("mean", "low", "high", "n", "clusters")
                }
                for m in found.measures
            }
            for arm in run.arms
        },
        "differences": {
            arm: {
                one.measure.label: {
                    "difference": one.difference,
                    "low": one.low,
                    "high": one.high,
                    "p": one.p,
                    "pairs": one.n,
                    "verdict": one.verdict,
                    "at_equal_motion": None if one.equal is None else asdict(one.equal),
                }
                for one in compared
            }
            for arm, compared in found.comparisons.items()
        },
        "claims": [
            {"claim": c.claim.text, "measure": c.comparison.measure.label, "verdict": c.verdict}
            for c in found.claims
        ],
    }
