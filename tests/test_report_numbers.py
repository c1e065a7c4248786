"""Numbers as reports print them: none contradicts the verdict beside it."""

import pytest
from report_runs import RunFolder
from test_report import ARMS, fill, made

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


def test_a_run_without_scorers_is_reported_by_its_cost(tmp_path, capsys):
    """Breaks if an experiment that scores nothing, as the public `efficiency`, has no report."""
    about = {"published": "efficiency", "baseline": "fifo", "axis": "frames"}
    run = RunFolder(tmp_path, "bare", ARMS, {f"p{i}": f"x {i}" for i in range(6)}, about=about)
    for i in range(6):
        for arm, more in (("fifo", 0), ("miga", 1)):
            run.item(arm, f"p{i}", seconds={"stage1": 3.0 + more + i / 100})
    (told,) = made(capsys, run.close(), "-o", tmp_path / "out", "--prompts-shown", "0")["runs"]
    assert ("FIFO needs fewer seconds per frame than MIGA", "holds") in [
        (claim["claim"], claim["verdict"]) for claim in told["claims"]
    ]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "No video has been scored yet" in page
    assert "What a video took, by arm" in page


def test_intervals_are_said_to_hold_for_these_seeds(tmp_path, capsys):
    made(capsys, fill(tmp_path).close(), "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "for the noise of these seeds, which all prompts share" in page
