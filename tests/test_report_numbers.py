"""Numbers as reports print them: none contradicts the verdict beside it."""

from unittest.mock import patch

import pytest
from report_runs import RunFolder
from test_report import ARMS, SUBJECT, fill, made, row_of

from miga_bench.harness.report.comparisons import _verdict, compare
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.plots import _bar
from miga_bench.harness.results import read_results
from miga_bench.harness.tracking.facts import facts
from miga_bench.metrics.statistics import Estimate


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
    assert path.signed(value, low, high, 8) == shown
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


def test_chance_is_counted_over_verdicts_that_could_show_a_difference(tmp_path, capsys):
    """Breaks if a score of five prompts, or one that is 1 for all videos, adds to what chance may show."""
    run = RunFolder(tmp_path, "few", ARMS, {f"p{i}": f"x {i}" for i in range(8)})
    for i in range(8):
        few = {"few": i / 10} if i < 5 else {}
        run.item("fifo", f"p{i}", 0, {"a": 0.5, "level": 1.0, **few})
        run.item("miga", f"p{i}", 0, {"a": 0.5 + (-1) ** i * i / 1e3, "level": 1.0, **few})
    made(capsys, run.close(), "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "there being 1 that could show a difference: at most about 0.05 would" in page


def test_a_mean_share_is_printed_within_what_it_can_be(tmp_path, capsys):
    """Breaks if 18 of 20 videos that move are "90.00 (75.59 to 104.41)", or a hue's interval is cut at 1."""
    labels = ("dynamic_degree", "world/asked_color", "narrlv/fid", "world/hue_drift", "mine/sharp")
    run = RunFolder(tmp_path, "share", ARMS, {f"p{i}": f"x {i}" for i in range(20)})
    for i in range(20):
        for arm in ARMS:
            run.item(arm, f"p{i}", 0, dict.fromkeys(labels, float(i > 1)))
    (told,) = made(capsys, run.close(), "-o", tmp_path / "out", "--prompts-shown", "0")["runs"]
    assert told["arms"]["miga"]["dynamic_degree"]["high"] > 1.04  # the statistic stays as it is
    found = told["arms"]["miga"]["dynamic_degree"]
    cut = {label: measure_of(label).interval(found["low"], found["high"], 20) for label in labels}
    assert cut == {
        "dynamic_degree": "75.59 to 100.00",
        "world/asked_color": "75.6 to 100.0",
        "narrlv/fid": "75.59 to 100.00",
        "world/hue_drift": "0.76 to 1.04",
        "mine/sharp": "75.59 to 104.41",
    }
    page = (tmp_path / "out" / "report.md").read_text()
    assert "90.00 (75.59 to 100.00)" in page
    low, reach = _bar(Estimate(0.1, 0.1, -0.04, 0.24, 20, 20, 0, 0.95), measure_of(labels[0]))
    assert (low, reach) == (pytest.approx(10), [[pytest.approx(10)], [pytest.approx(14)]])


@pytest.mark.parametrize("others", [(), ("short",)])
def test_a_verdict_that_few_prompts_decide_is_named_below_its_table(tmp_path, capsys, others):
    """Breaks if 5 of 20 prompts that differ, the sign test's p 0.062, pass for as sure as 20 of 20."""
    arms = ARMS | {name: {"method": name, "settings": {}} for name in others}
    run = RunFolder(tmp_path, "tied", arms, {f"p{i}": f"x {i}" for i in range(20)})
    for i in range(20):
        for arm in ("fifo", *others):
            run.item(arm, f"p{i}", 0, {"world/found": 0.5, SUBJECT: 0.9})
        run.item("miga", f"p{i}", 0, {"world/found": 0.5 + (i < 5) / 2, SUBJECT: 0.95 + i / 1e4})
    folder = run.close()
    results = read_results(folder)
    found = compare(results, {"miga": 1, "fifo": -1}, measure_of("world/found"))
    assert (found.verdict, found.wins, found.losses) == ("better", 5, 0)
    assert found.p == pytest.approx(0.0625)
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    (line,) = (one for one in page.splitlines() if one.startswith("The sign test, which"))
    assert f"(p above 0.05) in {'miga: ' * len(others)}subject found. It has" in line
    assert page[: page.index(line)].rstrip().splitlines()[-1].startswith("| ")
    page = page.partition("miga minus fifo\n")[2]
    assert row_of(page, "subject consistency \\[tiny\\] (x 100)")[4] == "&lt; 0.001"


def test_cost_per_frame_and_the_papers_error_are_said_to_be_what_they_are(tmp_path, capsys):
    folder = fill(tmp_path).close()
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "sums over an arm's videos, divided by all their frames" in page
    assert "Ours minus wan2.1-1.3b (not comparable)" in page
    with patch("miga_bench.harness.report.tables.why_not_comparable", return_value=[]):
        made(capsys, folder, "-o", tmp_path / "alike", "--prompts-shown", "0")
    alike = (tmp_path / "alike" / "report.md").read_text()
    assert "Ours minus wan2.1-1.3b (the interval is of ours alone)" in alike


def test_videos_of_unlike_lengths_make_one_curve_in_mlflow_and_no_sawtooth(tmp_path):
    """Breaks if bins are pooled by their middles: 0.9, 0.5, 0.9, 0.5 along videos that stay as they are."""
    run = RunFolder(tmp_path, "lengths", {"miga": ARMS["miga"]}, {"short": "a", "long": "b"})
    run.item("miga", "short", 0, {"a": 0.9}, series={"a": [[0, 11, 0.9], [12, 23, 0.9]]}, frames=24)
    run.item("miga", "long", 0, {"a": 0.5}, series={"a": [[0, 23, 0.5], [24, 47, 0.5]]}, frames=48)
    results = read_results(run.close())
    points = facts(results, results.arms["miga"]).curves["drift/a"]
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert [mean for step, mean in points if step < 24] == pytest.approx([0.7] * 24)
    assert {mean for step, mean in points if step >= 24} == {0.5}
