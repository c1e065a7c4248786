"""How sure a mean score is, and whether one method beats another on the same prompts.

Videos of one prompt with several seeds are not independent: a hard prompt is hard for every seed. All
of this therefore counts prompts, not videos. A cluster is the videos of one prompt.

Standard error: ``SE^2 = G / (G - 1) * sum_g (sum_{i in g} w_i (x_i - mean))^2 / (sum_i w_i)^2`` with G
clusters, the sandwich estimator of a mean with its small-sample factor (Cameron and Miller, "A
Practitioner's Guide to Cluster-Robust Inference", 2015). With weights of 1 and clusters of one value it
is the ordinary standard error. All sums are ``math.fsum``, so that the order of the values changes not one bit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from miga_bench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Values: TypeAlias = "Sequence[float | None] | np.ndarray[Any, Any] | Tensor"
Clusters: TypeAlias = "Sequence[Hashable] | np.ndarray[Any, Any] | Tensor"
Groups: TypeAlias = "dict[Hashable, list[tuple[float, float]]]"  # weight and value, by cluster

SURE_FROM = 3  # clusters; the interval of two begins below what a score can be and ends above it


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: Mean of the values; None if there are none.
        standard_error: Of the mean, clustered; None below two clusters.
        low: Lower end of the confidence interval; None below two clusters.
        high: Upper end of it.
        n: Values that went in.
        clusters: Clusters they belong to.
        dropped: Values left out because they were None or NaN.
        level: Confidence level of the interval, 0..1.
        reason: Why there is no interval; None if there is one.
    """

    mean: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    dropped: int
    level: float
    reason: str | None = None


@dataclass(frozen=True)
class Paired:
    """The difference of two methods on the same prompts and seeds, first minus second.

    Attributes:
        difference: Mean over pairs with its interval; what it counts are pairs, left out where a side was
            None or NaN.
        p: Two-sided sign test over clusters, 0..1: how often a fair coin would split them at least as
            unevenly. 1 if every cluster is a tie.
        wins: Clusters whose mean difference is above zero.
        losses: Clusters whose mean difference is below zero.
        ties: Clusters whose mean difference is zero; the sign test leaves them out.
    """

    difference: Estimate
    p: float
    wins: int
    losses: int
    ties: int


def estimate(
    values: Values,
    clusters: Clusters | None = None,
    level: float = 0.95,
    weights: Values | None = None,
) -> Estimate:
    """Return the mean with its clustered standard error and Student t interval.

    The t quantile has clusters - 1 degrees of freedom.

    Args:
        values: ``[N]`` scores; None and NaN stand for videos without a score and are left out.
        clusters: ``[N]`` what each value belongs to, such as its prompt. None: each to itself.
        level: Confidence level, between 0 and 1.
        weights: ``[N]`` above 0, such as the frames each value is a mean of. None: all alike.

    Raises:
        UserError: If a value is infinite, the level is not between 0 and 1, or the lengths differ.
    """
    numbers = _floats(values)
    names: Sequence[Hashable] = range(len(numbers)) if clusters is None else _listed(clusters)
    groups, dropped = _grouped(numbers, names, level, None if weights is None else _floats(weights))
    n, count = sum(map(len, groups.values())), len(groups)
    if n == 0:
        return Estimate(None, None, None, None, 0, 0, dropped, level, "no value has a score")
    mean = _mean(groups)
    error = _standard_error(groups, mean)
    if error is None:
        reason = "an interval needs two clusters at least, and there is one"
        return Estimate(mean, None, None, None, n, count, dropped, level, reason)
    reach = _quantile(count, level) * error
    return Estimate(mean, error, mean - reach, mean + reach, n, count, dropped, level)


def mean_of_means(scores: Sequence[Values], clusters: Clusters, level: float = 0.95) -> Estimate:
    """Return the mean of several scores' means, each over the videos that it has, and how sure it is.

    What a cluster adds is summed over its scores, ``r_g = sum_s sum_{i in g} (x_si - mean_s) / n_s``, so that
    scores of the same videos may depend on each other: ``SE^2 = G / (G - 1) * sum_g r_g^2 / S^2`` for S scores.
    G, the degrees of freedom and all counts are of the score with the fewest clusters, to be on the safe side.
    Where every video has every score, it is the ``estimate`` of the videos' own means.

    Args:
        scores: ``[S][N]``; None and NaN stand for videos that are not for a score, or lack it.
        clusters: ``[N]`` what each video belongs to, such as its prompt.
        level: Confidence level, between 0 and 1.

    Raises:
        UserError: As for ``estimate``.
    """
    found = [estimate(values, clusters, level) for values in scores]
    fewest = min(found, key=lambda one: one.clusters)
    means = [one.mean for one in found if one.mean is not None]
    if len(found) == 1 or len(means) < len(found):
        return fewest
    mean, count = math.fsum(means) / len(means), fewest.clusters
    if count < 2:
        return replace(fewest, mean=mean)
    pulls: dict[Hashable, list[float]] = {}
    for values, own, one in zip(scores, means, found, strict=True):
        for value, name in zip(_floats(values), _listed(clusters), strict=True):
            if not math.isnan(value):
                pulls.setdefault(name, []).append((value - own) / one.n)
    squares = math.fsum(math.fsum(pull) ** 2 for pull in pulls.values())
    error = math.sqrt(count / (count - 1) * squares) / len(means)
    reach = _quantile(count, level) * error
    return replace(fewest, mean=mean, standard_error=error, low=mean - reach, high=mean + reach)


def paired(first: Values, second: Values, clusters: Clusters, level: float = 0.95) -> Paired:
    """Compare two methods pair by pair: the mean of first minus second, and how sure its sign is.

    The interval is that of ``estimate``, as in a report: percentile bootstrap intervals are too narrow
    below ten clusters, and experiments are often that small.

    Args:
        first: ``[N]`` scores; None and NaN stand for videos this method does not have.
        second: ``[N]`` scores of the other method on the same prompts and seeds.
        clusters: ``[N]`` what each pair belongs to, such as its prompt.
        level: Confidence level, between 0 and 1.

    Raises:
        UserError: If a value is infinite, the level is not between 0 and 1, or the lengths differ.
    """
    left, right = _floats(first), _floats(second)
    if len(left) != len(right):
        raise UserError(
            f"{len(left)} scores against {len(right)}: pairs need one of each; "
            "put None where a method lacks the video"
        )
    return compared([a - b for a, b in zip(left, right, strict=True)], clusters, level)


def compared(differences: Values, clusters: Clusters, level: float = 0.95) -> Paired:
    """Like ``paired``, but for differences (or other weighted sums) that are already computed.

    Args:
        differences: ``[N]``; None and NaN are left out.
        clusters: ``[N]`` what each belongs to.
        level: Confidence level, between 0 and 1.

    Raises:
        UserError: As for ``paired``.
    """
    numbers, names = _floats(differences), _listed(clusters)
    found = estimate(numbers, names, level)
    groups, _ = _grouped(numbers, names, level)
    totals = [math.fsum(x for _, x in group) for group in groups.values()]
    wins, losses = sum(total > 0 for total in totals), sum(total < 0 for total in totals)
    return Paired(found, sign_test(wins, losses), wins, losses, len(totals) - wins - losses)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p of the sign test, exact: ``min(1, 2 P(X <= min(wins, losses)))``.

    X is binomial with ``wins + losses`` fair coins.
    """
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)  # a quotient of integers, rounded once


def _quantile(clusters: int, level: float) -> float:
    """Return Student's t of a two-sided interval."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(clusters - 1, (1 + level) / 2))


def _mean(groups: Groups) -> float:
    """Return the weighted mean over all clusters."""
    pairs = [pair for group in groups.values() for pair in group]
    return math.fsum(w * x for w, x in pairs) / math.fsum(w for w, _ in pairs)


def _standard_error(groups: Groups, mean: float) -> float | None:
    """Return the clustered standard error of the weighted mean; None below two clusters."""
    count = len(groups)
    if count < 2:
        return None
    residuals = [math.fsum(w * (x - mean) for w, x in group) for group in groups.values()]
    weight = math.fsum(w for group in groups.values() for w, _ in group)
    return math.sqrt(count / (count - 1) * math.fsum(r * r for r in residuals)) / weight


def _grouped(
    numbers: Sequence[float],
    names: Sequence[Hashable],
    level: float,
    weights: Sequence[float] | None = None,
) -> tuple[Groups, int]:
    """Return (weight, value) of each cluster without NaN values, and how many NaN there were."""
    if not 0 < level < 1:
        raise UserError(
            f"a confidence level of {level}: it must lie between 0 and 1; 0.95 is usual"
        )
    weights = [1.0] * len(numbers) if weights is None else weights
    if not len(numbers) == len(names) == len(weights):
        raise UserError(
            f"{len(numbers)} scores, {len(names)} clusters and {len(weights)} weights: "
            "every score needs one of each"
        )
    groups: Groups = {}
    for number, name, weight in zip(numbers, names, weights, strict=True):
        if math.isinf(number):
            raise UserError(
                f"a score of {number} (cluster {name!r}): scores are finite; "
                "score that video again, or leave it out as None"
            )
        if not math.isnan(number):
            groups.setdefault(name, []).append((weight, number))
    return groups, len(numbers) - sum(map(len, groups.values()))


def _floats(values: Values) -> list[float]:
    """Return the values as floats, None as NaN."""
    return [math.nan if value is None else float(value) for value in _listed(values)]


def _listed(values: Any) -> list[Any]:
    """Return arrays and tensors as a list of Python scalars, other sequences as a list."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
