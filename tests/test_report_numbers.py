"""Numbers as reports print them: none contradicts the verdict beside it."""

import pytest

from miga_bench.harness.report.comparisons import _verdict
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.tables import signed


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (-0.005, -0.008, -0.002, ("-0.005", "-0.008 to -0.002")),
        (0.3, 0.0004, 0.6, ("+0.3000", "+0.0004 to +0.6000")),
        (-3e-7, -5e-7, -1e-7, ("-0.00000", "-0.00000 to -0.00000")),
        (0.001, -0.004, 0.3, ("+0.00", "-0.00 to +0.30")),  # reaches zero
        (0.0, 0.0, 0.0, ("+0.00", "+0.00 to +0.00")),
        (-0.0, None, None, ("+0.00", "")),
        (0.12, 0.1, 0.14, ("+0.12", "+0.10 to +0.14")),
    ],
)
def test_a_printed_interval_bears_out_its_verdict(value, low, high, shown):
    """Breaks if a path that is shorter by 0.002 to 0.008 is printed as "+0.00 to -0.01"."""
    path = measure_of("world/path")
    assert signed(path, value, low, high, 8) == shown
    if _verdict(path, low, high, 8) == "moves less":
        assert all(number.startswith("-") for number in shown[1].split(" to "))


def test_means_have_no_negative_zero():
    assert measure_of("world/path").number(-0.001) == "0.00"
