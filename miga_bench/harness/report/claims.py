"""Claims of the paper, held against a run's own pairs.

Most are comparisons of arms. One is that something stays the same over the length of an arm's videos: it
holds where the whole 95 % interval of the difference between the longest and the shortest, the same text and
seed, lies within a share of the shortest's mean, and does not where the whole interval lies outside.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from miga_bench.harness.report.comparability import why_not_comparable
from miga_bench.harness.report.comparisons import (
    BETTER,
    FEWEST,
    NOT_SHOWN,
    OTHER_MACHINES,
    TOO_FEW,
    WORSE,
    Comparison,
    compare,
)
from miga_bench.harness.report.measures import (
    COSTS,
    Measure,
    base_of,
    measure_of,
    motion_of,
    value_of,
)
from miga_bench.harness.report.published import published_table
from miga_bench.harness.results import Results, Row
from miga_bench.metrics.statistics import compared

FILE = Path(__file__).parent / "claims.yaml"
HOLDS, DOES_NOT_HOLD = "holds", "does not hold"
NOT_SHOWN_HERE = "not shown"
OF_PROCESS = "a process's memory holds what earlier videos left; a GPU's does not"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, as a comparison.

    Attributes:
        text: The sentence, in our words.
        published: Key of the published table it rests on; None where it rests on none we have.
        weights: By arm; the weighted sum is on the better side of zero if the claim holds.
        measure: Label, without networks.
        constant: For a claim that one arm's measure does not depend on the length: the share, above 0, of its
            mean at the shortest length that the difference to the longest may have. None for a comparison.
    """

    text: str
    published: str | None
    weights: Mapping[str, float]
    measure: str
    constant: float | None = None

    def paper(self) -> dict[str, float]:
        """Return the weighted sum of the paper's own numbers, by backbone, where it prints them all."""
        if self.published is None:
            return {}
        table = published_table(self.published)
        out = {}
        for backbone in table.backbones():
            rows = table.of(backbone)
            cells = {arm: rows[arm].scores for arm in self.weights if arm in rows}
            column = measure_of(self.measure).column
            if len(cells) == len(self.weights) and column in table.columns:
                out[backbone] = sum(w * cells[arm][column] for arm, w in self.weights.items())
        return out


@dataclass(frozen=True)
class Finding:
    """A claim on a run.

    Attributes:
        claim: The claim.
        comparison: The run's own pairs.
        verdict: ``holds``, ``does not hold`` or ``not shown``, with the reason.
        alike: The paper's backbones that the run's scores can be set beside.
    """

    claim: Claim
    comparison: Comparison
    verdict: str
    alike: Collection[str] = ()


@functools.cache
def all_claims() -> tuple[Claim, ...]:
    """Return the claims of the data file."""
    out = []
    for entry in yaml.safe_load(FILE.read_text(encoding="utf-8"))["claims"]:
        constant = entry.get("constant")
        weights = entry.get("weights") or {entry["better"]: 1, entry["worse"]: -1}
        out.append(
            Claim(entry["text"], entry.get("published"), weights, entry["measure"], constant)
        )
    return tuple(out)


def check_claims(run: Results, measures: Sequence[Measure]) -> list[Finding]:
    """Return what the run says of each claim that it has the arms and the measure for.

    Claims that rest on a published table are about videos as that table's: those on scores are left out where
    the run stands beside another table, and where prompts ask for a change, which they count as a fault.
    """
    motion = motion_of(measures)
    beside = run.about.get("published")
    out = []
    for claim in all_claims():
        if not all(arm in run.arms for arm in claim.weights):
            continue
        for measure in (*measures, *COSTS):
            if base_of(measure.label) != claim.measure:
                continue
            of_others = claim.published is not None and beside not in (None, claim.published)
            if measure.group != "cost" and (of_others or run.changing):
                continue
            if claim.constant is not None:
                out += _over_length(run, claim, measure)
                continue
            comparison = compare(run, claim.weights, measure, motion)
            if comparison.n:
                alike = _alike(run, claim, measure)
                out.append(Finding(claim, comparison, _verdict(comparison), alike))
    return out


def _alike(run: Results, claim: Claim, measure: Measure) -> list[str]:
    """Return the paper's backbones with which the measure is comparable; costs are of the paper's machine."""
    if claim.published is None:
        return []
    table = published_table(claim.published)
    if table.toolkit is None:
        return []
    return [b for b in claim.paper() if not why_not_comparable(run, table, b, [measure])]


def _over_length(run: Results, claim: Claim, measure: Measure) -> list[Finding]:
    """Hold the longest videos of the claim's arm against the shortest of the same texts and seeds."""
    (arm,) = claim.weights
    rows = [row for row in run.of(arm) if row.status == "done"]
    lengths = sorted({row.frames for row in rows})
    if len(lengths) < 2:
        return []
    short, long = (
        {(row.cluster, row.seed): row for row in rows if row.frames == frames}
        for frames in (lengths[0], lengths[-1])
    )
    both = [pair for pair in short if pair in long]
    ends = [[value_of(row, measure.label) for row in (short[pair], long[pair])] for pair in both]
    found = compared(
        [None if a is None or b is None else b - a for a, b in ends], [text for text, _ in both]
    )
    if not found.difference.n:
        return []
    starts = [a for a, b in ends if a is not None and b is not None]
    margin = (claim.constant or 0) * sum(starts) / len(starts)
    low, high, prompts = found.difference.low, found.difference.high, found.difference.clusters
    told = [short[pair] for pair in both] + [long[pair] for pair in both]
    if len({row.machine for row in told}) > 1:
        verdict = f"{NOT_SHOWN_HERE}: {OTHER_MACHINES}"
    elif measure.label == "cost/peak_memory" and not all(_on_gpu(row) for row in told):
        verdict = f"{NOT_SHOWN_HERE}: {OF_PROCESS}"
    elif prompts < FEWEST or low is None or high is None:
        verdict = f"{NOT_SHOWN_HERE}: {TOO_FEW}"
    elif -margin <= low and high <= margin:
        verdict = HOLDS
    else:
        verdict = DOES_NOT_HOLD if low > margin or high < -margin else NOT_SHOWN_HERE
    comparison = Comparison(
        measure,
        found.difference.mean,
        low,
        high,
        found.p,
        found.wins,
        found.losses,
        found.difference.n,
        prompts,
        found.difference.dropped,
        verdict,
    )
    return [Finding(claim, comparison, verdict)]


def _on_gpu(row: Row) -> bool:
    return "gpu" in row.cost["peak_memory_mib"]


def _verdict(comparison: Comparison) -> str:
    if comparison.verdict == BETTER:
        return HOLDS
    if comparison.verdict == WORSE:
        return DOES_NOT_HOLD
    why = "" if comparison.verdict == NOT_SHOWN else f": {comparison.verdict}"
    return NOT_SHOWN_HERE + why
