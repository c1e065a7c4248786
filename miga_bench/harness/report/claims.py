"""Claims of the paper, held against a run's own pairs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from miga_bench.harness.report.comparisons import BETTER, NOT_SHOWN, WORSE, Comparison, compare
from miga_bench.harness.report.measures import COSTS, Measure, base_of, measure_of, motion_of
from miga_bench.harness.report.published import published_table
from miga_bench.harness.results import Results

FILE = Path(__file__).parent / "claims.yaml"
HOLDS, DOES_NOT_HOLD = "holds", "does not hold"
NOT_SHOWN_HERE = "not shown"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, as a comparison.

    Attributes:
        text: The sentence, in our words.
        published: Key of the published table it rests on; None where it rests on none we have.
        weights: By arm; the weighted sum is on the better side of zero if the claim holds.
        measure: Label, without networks.
    """

    text: str
    published: str | None
    weights: Mapping[str, float]
    measure: str

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
    """

    claim: Claim
    comparison: Comparison
    verdict: str


@functools.cache
def all_claims() -> tuple[Claim, ...]:
    """Return the claims of the data file."""
    out = []
    for entry in yaml.safe_load(FILE.read_text(encoding="utf-8"))["claims"]:
        weights = entry.get("weights") or {entry["better"]: 1, entry["worse"]: -1}
        out.append(Claim(entry["text"], entry.get("published"), weights, entry["measure"]))
    return tuple(out)


def check_claims(run: Results, measures: Sequence[Measure]) -> list[Finding]:
    """Return what the run says of each claim that it has the arms and the measure for."""
    motion = motion_of(measures)
    out = []
    for claim in all_claims():
        if not all(arm in run.arms for arm in claim.weights):
            continue
        for measure in (*measures, *COSTS):
            if base_of(measure.label) == claim.measure:
                comparison = compare(run, claim.weights, measure, motion)
                if comparison.n:
                    out.append(Finding(claim, comparison, _verdict(comparison)))
    return out


def _verdict(comparison: Comparison) -> str:
    if comparison.verdict == BETTER:
        return HOLDS
    if comparison.verdict == WORSE:
        return DOES_NOT_HOLD
    why = "" if comparison.verdict == NOT_SHOWN else f": {comparison.verdict}"
    return NOT_SHOWN_HERE + why
