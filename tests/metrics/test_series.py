"""A bounded series: nothing is lost from the mean, and bins lie edge to edge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miga_bench.metrics.series import Series

quick = settings(deadline=None, max_examples=50)


@quick
@given(
    st.lists(st.lists(st.floats(-1000, 1000), max_size=40), max_size=8),
    st.integers(1, 6).map(lambda half: 2 * half),
)
def test_weighted_mean_of_bins_is_the_mean(pieces, capacity):
    series, values = Series(capacity), [x for piece in pieces for x in piece]
    for piece in pieces:
        series.push(piece)
    bins = series.means()
    assert len(bins) <= capacity
    assert [b.first for b in bins] == [0, *[b.last + 1 for b in bins]][: len(bins)]
    assert sum(b.last - b.first + 1 for b in bins) == len(values)
    total = sum(b.mean * (b.last - b.first + 1) for b in bins)
    assert total == pytest.approx(sum(values), abs=1e-6)
    for b in bins:
        stretch = values[b.first : b.last + 1]
        assert b.mean == pytest.approx(sum(stretch) / len(stretch), abs=1e-6)


def test_width_doubles_only_when_full():
    series = Series(4)
    series.push([1.0, 2.0, 3.0, 4.0])
    assert series.means() == [(0, 0, 1.0), (1, 1, 2.0), (2, 2, 3.0), (3, 3, 4.0)]
    series.push(torch.tensor([5.0]))
    assert series.means() == [(0, 1, 1.5), (2, 3, 3.5), (4, 4, 5.0)]


def test_memory_is_bounded():
    series = Series(8)
    series.push(range(10_000))
    assert len(series.means()) <= 8
    assert len(series._sums) <= 8


@pytest.mark.parametrize("capacity", [0, 1, 7])
def test_capacity_is_even(capacity):
    with pytest.raises(ValueError, match="even"):
        Series(capacity)
