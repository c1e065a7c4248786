"""Does one arm beat another on the same prompts and seeds, and does it still at equal motion?

Intervals are Student's t over prompts, as everywhere in a report, see ``metrics.statistics.paired``.

At equal motion: scores of consistency reward a video that stands still. So the difference of the scores of
each pair is fitted by a straight line over the difference of its motion, ``score = a + b motion``; ``a`` is
the difference that is left where both videos move alike, and its interval is clustered by prompt too
(Cameron and Miller 2015, the factor ``G / (G - 1) * (N - 1) / (N - 2)``, t with G - 1 degrees of freedom).
There is no line, and no verdict:

- where a measure of motion is the same for both videos of every pair, as a dynamic degree of 0 or 1 often is,
  for that does not say that they move alike;
- where nearly all pairs move more, or nearly all less: ``a`` would lie at the edge of what was seen;
- for other sums than one arm minus another: three arms whose motion adds up to zero need not move alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from miga_bench.harness.costs import machines
from miga_bench.harness.report.measures import Measure, asked, value_of
from miga_bench.harness.results import Results
from miga_bench.metrics.statistics import compared, mean_of_means

FEWEST = 6  # prompts: the sign test of five alike is at 0.06
SIGNIFICANT = 0.05  # of the sign test
BETTER, WORSE, MORE, LESS = "better", "worse", "moves more", "moves less"
OTHER_MACHINES = "made on different hardware, or by teams of different size"
MEASURED = ("cost/seconds_per_frame", "cost/peak_memory")  # which are also the machine's
NOT_SHOWN, TOO_FEW, NO_PAIRS = "no difference shown", "too few prompts", "no pairs"
OF_SEVERAL = "cannot be said: its scores are of different videos"
OF_MORE_ARMS = "cannot be said: it is no difference of two arms"
UNTOLD = "cannot be said: the measure of motion does not tell these videos apart"
SAME_MOTION = 1e-9  # pixels per frame, or a share: what summing in another order leaves
# Percent of the pairs that must move as much or more, and as much or less, so that equal motion is inside the
# data: of the fewest prompts, six, they are two, and no single pair decides where the line goes.
EITHER_SIDE = 20


@dataclass(frozen=True)
class EqualMotion:
    """What is left of a difference where both videos move alike.

    Attributes:
        difference: The line's value at no difference of motion; None where it cannot be said.
        low: Lower end of its 95 % interval.
        high: Upper end.
        verdict: In words.
        n: Pairs that have both the score and motion; the others are not in the line.
    """

    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    n: int


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of arms, pair by pair: with the weights 1 and -1, their difference.

    Attributes:
        measure: What is compared.
        difference: Mean over pairs, as the score is stored; None if there is no pair.
        low: Lower end of its 95 % interval over prompts; None below two prompts.
        high: Upper end.
        p: Sign test over prompts, two-sided.
        wins: Prompts whose mean difference is above zero, whichever way is better.
        losses: Prompts whose mean difference is below zero.
        n: Pairs.
        prompts: Prompts they belong to.
        dropped: Pairs that the measure is asked of, left out because one of the videos has no score.
        verdict: In words.
        equal: At equal motion; None for motion itself, for costs and where motion was not measured.
    """

    measure: Measure
    difference: float | None
    low: float | None
    high: float | None
    p: float
    wins: int
    losses: int
    n: int
    prompts: int
    dropped: int
    verdict: str
    equal: EqualMotion | None = None

    @property
    def judged(self) -> bool:
        """Tell whether it has a verdict: there are prompts enough, of machines that are alike."""
        return self.verdict == NOT_SHOWN or self.shown

    @property
    def shown(self) -> bool:
        """Tell whether its verdict is that there is a difference."""
        return self.verdict in (BETTER, WORSE, MORE, LESS)

    @property
    def by_t_alone(self) -> bool:
        """Tell whether it shows a difference that the sign test does not."""
        return self.shown and self.p > SIGNIFICANT


def compare(
    run: Results, weights: Mapping[str, float], measure: Measure, motion: Measure | None = None
) -> Comparison:
    """Compare arms on the same prompts and seeds.

    Args:
        run: Holds the arms.
        weights: By arm: ``{"miga": 1, "fifo": -1}`` is miga minus fifo.
        measure: What to compare.
        motion: What says how much a video moves.
    """
    texts = {row.pair: row.cluster for row in run.rows}
    parts = run.overall.get(measure.label, [measure.label])
    by_part = [_pairs(run, weights, part) for part in parts]
    pairs, values = by_part[0]
    if len(parts) > 1:  # a pair goes up or down by what it has of the four
        values = [_mean_of_known(of_pair) for of_pair in zip(*(v for _, v in by_part), strict=True)]
    clusters = [texts[pair] for pair in pairs]
    pair_by_pair = compared(values, clusters)
    found = mean_of_means([v for _, v in by_part], clusters)
    wanted = set[tuple[str, int]]().union(*(asked(run, part) for part in parts))
    equal = None
    if motion is not None and not measure.is_motion and measure.group != "cost" and found.n:
        moved = dict(zip(*_pairs(run, weights, motion.label), strict=True))
        both = [
            (texts[pair], value, shift)
            for pair, value in zip(pairs, values, strict=True)
            if value is not None and (shift := moved.get(pair)) is not None
        ]
        if sorted(weights.values()) != [-1, 1]:
            equal = EqualMotion(None, None, None, OF_MORE_ARMS, len(both))
        elif len(parts) > 1:
            equal = EqualMotion(None, None, None, OF_SEVERAL, len(both))
        else:
            equal = _at_equal_motion(both, measure)
    return Comparison(
        measure,
        found.mean,
        found.low,
        found.high,
        pair_by_pair.p,
        pair_by_pair.wins,
        pair_by_pair.losses,
        found.n,
        found.clusters,
        sum(value is None and pair in wanted for pair, value in zip(pairs, values, strict=True)),
        OTHER_MACHINES
        if measure.label in MEASURED and found.n and len(machines(run, weights)) > 1
        else _verdict(measure, found.low, found.high, found.clusters),
        equal,
    )


def _pairs(
    run: Results, weights: Mapping[str, float], label: str
) -> tuple[list[tuple[str, int]], list[float | None]]:
    """Return the pairs that every arm has, and their weighted sums; None where a score is missing."""
    arms = {arm: {row.pair: row for row in run.of(arm)} for arm in weights}
    shared = [pair for pair in next(iter(arms.values())) if all(pair in a for a in arms.values())]
    sums: list[float | None] = []
    for pair in shared:
        scores = [value_of(arms[arm][pair], label) for arm in weights]
        known = [
            weight * score
            for weight, score in zip(weights.values(), scores, strict=True)
            if score is not None
        ]
        sums.append(sum(known) if len(known) == len(scores) else None)
    return shared, sums


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _verdict(measure: Measure, low: float | None, high: float | None, prompts: int) -> str:
    if prompts == 0:
        return NO_PAIRS
    if prompts < FEWEST or low is None or high is None or not isfinite(high - low):
        return TOO_FEW
    if low <= 0 <= high:
        return NOT_SHOWN
    if measure.better is None:
        return MORE if low > 0 else LESS
    return BETTER if (low > 0) == (measure.better == "higher") else WORSE


def _at_equal_motion(pairs: Sequence[tuple[str, float, float]], measure: Measure) -> EqualMotion:
    """Fit the line over (prompt, difference of scores, difference of motion)."""
    names, count = sorted({prompt for prompt, _, _ in pairs}), len(pairs)
    if len(names) < FEWEST:
        return EqualMotion(None, None, None, f"{TOO_FEW} with both", count)
    scores = np.array([score for _, score, _ in pairs])
    shifts = np.array([shift for _, _, shift in pairs])
    shifts[np.abs(shifts) <= SAME_MOTION] = 0
    if not shifts.any():
        return EqualMotion(None, None, None, UNTOLD, count)
    sides = {"more": int((shifts > 0).sum()), "less": int((shifts < 0).sum())}
    for way, found in sides.items():
        # a pair that moves alike is on both sides
        if 100 * (count - found) < EITHER_SIDE * count:
            where = "every pair" if found == count else f"{found} of {count} pairs"
            why = f"cannot be said: it moves {way} in {where}"
            return EqualMotion(None, None, None, why, count)
    table = np.stack([np.ones_like(shifts), shifts], axis=1)
    bread = np.linalg.inv(table.T @ table)
    line = bread @ table.T @ scores
    residuals = scores - table @ line
    member = np.array([names.index(prompt) for prompt, _, _ in pairs])
    pulls = np.stack([table[member == g].T @ residuals[member == g] for g in range(len(names))])
    groups = len(names)
    factor = groups / (groups - 1) * (count - 1) / (count - 2)
    error = float(np.sqrt((factor * bread @ (pulls.T @ pulls) @ bread)[0, 0]))
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    reach = float(stdtrit(groups - 1, 0.975)) * error
    height = float(line[0])
    low, high = height - reach, height + reach
    return EqualMotion(height, low, high, _verdict(measure, low, high, groups), count)
