"""Intervals and comparisons against closed forms, scipy, brute force and simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from miga_bench.errors import UserError
from miga_bench.metrics.statistics import estimate, mean_of_means, paired, sign_test

quick = settings(deadline=None, max_examples=40)
scores = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 6))
rows = st.lists(st.tuples(scores, st.integers(0, 5)), min_size=2, max_size=30)
arms = st.lists(st.tuples(scores, scores, st.integers(0, 5)), min_size=2, max_size=20)


def columns(table):
    return [list(column) for column in zip(*table, strict=True)]


def close(found, expected):
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


# The mean and its interval


def test_single_values_give_the_ordinary_standard_error_and_t_interval():
    x = np.random.default_rng(0).normal(0.9, 0.05, 23)
    found = estimate(x)
    close(found.mean, x.mean())
    close(found.standard_error, stats.sem(x))
    close((found.low, found.high), stats.t.interval(0.95, 22, x.mean(), stats.sem(x)))
    assert (found.n, found.clusters, found.dropped, found.reason) == (23, 23, 0, None)


def test_level_moves_the_ends():
    x = [0.1, 0.4, 0.3, 0.9]
    found = estimate(x, level=0.8)
    close((found.low, found.high), stats.t.interval(0.8, 3, np.mean(x), stats.sem(x)))


def test_equal_clusters_are_one_value_each():
    """With as many seeds for every prompt, the clustered error is that of the prompts' means."""
    x = np.random.default_rng(1).normal(size=(9, 4))
    found = estimate(x.ravel(), np.repeat(np.arange(9), 4))
    means = x.mean(axis=1)
    close(found.standard_error, stats.sem(means))
    close((found.low, found.high), stats.t.interval(0.95, 8, means.mean(), stats.sem(means)))


def test_unequal_clusters_by_hand():
    # mean 3; residual sums -3 (a), 0 (b), 3 (c); SE^2 = 3/2 * (9 + 0 + 9) / 36
    found = estimate([1, 2, 3, 2, 4, 6], ["a", "a", "b", "b", "b", "c"])
    assert found.mean == 3
    close(found.standard_error, math.sqrt(27 / 36))
    assert found.clusters == 3


def test_weights_count_as_copies_in_the_same_cluster():
    x, names, weights = [1.0, 2.5, 4.0, 0.5], ["a", "a", "b", "c"], [3, 1, 2, 4]
    copies = [(v, n) for v, n, w in zip(x, names, weights, strict=True) for _ in range(w)]
    found, plain = estimate(x, names, weights=weights), estimate(*columns(copies))
    close(found.mean, plain.mean)
    close((found.low, found.high), (plain.low, plain.high))
    assert found.n == 4


def test_interval_covers_and_one_that_ignores_prompts_does_not():
    generator = np.random.default_rng(2)
    prompts, seeds, runs = 8, 4, 2000
    prompt = generator.normal(size=(runs, prompts, 1))
    x = (0.7 + prompt + 0.5 * generator.normal(size=(runs, prompts, seeds))).reshape(runs, -1)
    names = np.repeat(np.arange(prompts), seeds)
    clustered = [estimate(row, names) for row in x]
    single = [estimate(row) for row in x]
    assert 0.93 <= np.mean([e.low <= 0.7 <= e.high for e in clustered]) <= 0.97
    assert np.mean([e.low <= 0.7 <= e.high for e in single]) < 0.8


@quick
@given(rows, st.randoms())
def test_order_changes_not_one_bit(table, random):
    shuffled = list(table)
    random.shuffle(shuffled)
    weights = [1 + abs(x) for x, _ in table], [1 + abs(x) for x, _ in shuffled]
    assert estimate(*columns(table)) == estimate(*columns(shuffled))
    assert estimate(*columns(table), weights=weights[0]) == estimate(
        *columns(shuffled), weights=weights[1]
    )


@quick
@given(rows, st.floats(-50, 50), st.floats(0.1, 10))
def test_shift_and_scale(table, shift, scale):
    x, names = columns(table)
    plain, moved = estimate(x, names), estimate([scale * v + shift for v in x], names)
    close(moved.mean, scale * plain.mean + shift)
    if plain.clusters > 1:
        assert moved.standard_error == pytest.approx(scale * plain.standard_error, abs=1e-6)
        assert moved.low == pytest.approx(scale * plain.low + shift, rel=1e-6, abs=1e-5)


def test_missing_values_are_left_out_and_counted():
    found = estimate([0.5, None, 0.7, math.nan], ["a", "b", "c", "c"])
    assert (found.mean, found.n, found.clusters, found.dropped) == (0.6, 2, 2, 2)


def test_one_cluster_has_a_mean_and_a_reason_but_no_interval():
    found = estimate([0.5, 0.7], ["a", "a"])
    assert (found.mean, found.standard_error, found.low, found.high) == (0.6, None, None, None)
    assert "two clusters" in found.reason
    empty = estimate([None])
    assert (empty.mean, empty.n, empty.dropped) == (None, 0, 1)
    assert "no value" in empty.reason


def test_tensors_arrays_and_lists_are_the_same():
    x = [0.25, 0.5, 0.125]
    assert estimate(torch.tensor(x)) == estimate(np.array(x)) == estimate(x)
    names = torch.tensor([4, 4, 5])
    assert estimate(x, names).clusters == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate([1.0, math.inf]), "scores are finite"),
        (lambda: estimate([1.0], ["a", "b"]), "1 scores, 2 clusters"),
        (lambda: estimate([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: paired([1.0], [1.0, 2.0], ["a"]), "1 scores against 2"),
    ],
)
def test_mistakes_are_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# Several scores


def test_the_mean_of_means_is_that_of_the_videos_own_means_where_all_have_all():
    x = np.random.default_rng(2).normal(size=(4, 12))
    prompts = np.repeat(np.arange(6), 2)
    found, own = mean_of_means(list(x), prompts), estimate(x.mean(axis=0), prompts)
    for name in ("mean", "standard_error", "low", "high"):
        close(getattr(found, name), getattr(own, name))
    assert (found.n, found.clusters, found.dropped) == (12, 6, 0)
    assert mean_of_means([list(x[0])], prompts) == estimate(x[0], prompts)


def test_errors_of_scores_of_other_prompts_add_in_squares_and_of_the_same_prompts_plainly():
    """Breaks if two scores of the same videos count as independent evidence."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.9, 0.1, 8), rng.normal(0.2, 0.3, 8)
    none, prompts = [None] * 8, np.arange(16)
    apart = mean_of_means([[*a, *none], [*none, *b]], prompts)
    close(apart.mean, (a.mean() + b.mean()) / 2)  # whose distance is no error
    close(apart.standard_error, math.hypot(stats.sem(a), stats.sem(b)) / 2)
    close(apart.high - apart.mean, stats.t.ppf(0.975, 7) * apart.standard_error)
    assert (apart.n, apart.clusters) == (8, 8)
    same = mean_of_means([a, a], range(8))
    close(same.standard_error, stats.sem(a))


def test_the_mean_of_means_knows_no_more_than_the_score_with_the_fewest_prompts():
    many = [0.1, 0.2, 0.3, 0.4, None]
    one = mean_of_means([many, [None, None, None, None, 0.8]], range(5))
    close(one.mean, (0.25 + 0.8) / 2)
    assert (one.standard_error, one.low, one.clusters) == (None, None, 1)
    assert mean_of_means([many, [None] * 5], range(5)).mean is None


# Two methods


def test_difference_is_the_estimate_of_the_differences():
    first, second, names = [0.9, 0.8, 0.7, 0.9], [0.7, 0.7, 0.8, 0.6], list("aabc")
    found = paired(first, second, names)
    assert found.difference == estimate(np.subtract(first, second), names)
    sure = paired(first, second, names, level=0.8).difference
    assert sure == estimate(np.subtract(first, second), names, level=0.8)
    assert (found.wins, found.losses, found.ties) == (2, 1, 0)


@quick
@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_test_is_the_binomial_test(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_sign_test_counts_prompts_and_drops_ties():
    # a: +0.2 on average, b: tie, c: loss by three videos, d: win
    first = [0.5, 0.9, 0.4, 0.6, 0.1, 0.1, 0.1, 0.8]
    second = [0.6, 0.4, 0.4, 0.6, 0.2, 0.2, 0.2, 0.1]
    found = paired(first, second, list("aabbcccd"))
    assert (found.wins, found.losses, found.ties, found.difference.clusters) == (2, 1, 1, 4)
    assert found.p == 1.0
    assert paired([1.0] * 6, [0.0] * 6, range(6)).p == 2 / 64
    assert paired([1.0] * 6, [1.0] * 6, range(6)).p == 1.0


@quick
@given(arms)
def test_swapping_the_methods_flips_the_sign(table):
    first, second, names = columns(table)
    one, two = paired(first, second, names), paired(second, first, names)
    assert two.difference.mean == -one.difference.mean
    assert (two.wins, two.losses, two.ties, two.p) == (one.losses, one.wins, one.ties, one.p)
    assert two.difference.standard_error == one.difference.standard_error
    if one.difference.clusters > 1:
        assert (two.difference.low, two.difference.high) == (
            -one.difference.high,
            -one.difference.low,
        )


@quick
@given(arms, st.randoms())
def test_order_of_pairs_changes_not_one_bit(table, random):
    shuffled = list(table)
    random.shuffle(shuffled)
    assert paired(*columns(table)) == paired(*columns(shuffled))


def test_pairs_with_a_missing_side_are_left_out():
    found = paired([0.5, None, 0.4, 0.3], [0.4, 0.2, math.nan, 0.1], list("abcd")).difference
    assert (found.n, found.clusters, found.dropped) == (2, 2, 2)
    one = paired([0.5, 0.5], [0.4, None], ["a", "b"]).difference
    assert one.mean == pytest.approx(0.1)
    assert (one.low, one.high, one.standard_error) == (None, None, None)
    assert "two clusters" in one.reason
    assert paired([None], [0.1], ["a"]).difference.mean is None
