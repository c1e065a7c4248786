"""What the first-block cache left out, in reports and in tracking. Seconds."""

import re

import pytest
from report_runs import RunFolder
from test_report import SUBJECT, made, row_of

from miga_bench.harness.costs import cost_of
from miga_bench.harness.report.curves import along_axis
from miga_bench.harness.report.measures import measure_of, value_of
from miga_bench.harness.results import read_results
from miga_bench.harness.tracking.facts import facts

ARMS = {
    f"cache-{value:g}": {
        "method": "miga",
        "settings": {"zigzag": 7, "cache": value},
    }
    for value in (0, 0.1, 0.2)
}
SHARES = {"cache-0": None, "cache-0.1": 0.25, "cache-0.2": 0.6}


@pytest.fixture
def folder(tmp_path):
    about = {"axis": "cache", "baseline": "cache-0"}
    run = RunFolder(tmp_path, "cache", ARMS, {"p0": "a", "p1": "b", "p2": "c"}, (0,), about)
    for arm, share in SHARES.items():
        for number, prompt in enumerate(run.prompts):
            skipped = None if share is None else int(share * 400)
            run.item(arm, prompt, 0, {SUBJECT: 0.9 + number / 100}, nfe=400, skipped=skipped)
    return run.close()


def test_the_share_of_every_arm(folder):
    results = read_results(folder)
    for arm, share in SHARES.items():
        rows = results.of(arm)
        assert cost_of(results, arm).skipped == (share and pytest.approx(share))
        assert [value_of(row, "cost/skipped") for row in rows] == [share] * 3
        metrics = facts(results, results.arms[arm]).metrics
        assert metrics.get("cost/skipped_share_of_nfe") == share
    assert measure_of("cost/skipped").number(0.25) == "25.0"


def test_an_arm_at_the_default_says_so(folder):
    changed = {name: arm.changed for name, arm in read_results(folder).arms.items()}
    assert changed == {f"cache-{value:g}": {"cache": value} for value in (0.0, 0.1, 0.2)}


def test_the_curve_begins_where_the_cache_is_off(folder):
    """Breaks if an arm whose description has no cache has no place on the axis."""
    curves = along_axis(read_results(folder), "cache", measure_of(SUBJECT))
    assert {name: [at for at, _ in points] for name, points in curves.items()} == {
        "cache": [0, 0.1, 0.2]
    }


def test_the_report_tells_work_in_operations(folder, tmp_path, capsys):
    """Breaks if arms that differ in what they left out stand at one place, all with the same evaluations."""
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    markdown = (tmp_path / "out" / "report.md").read_text()
    cost = markdown[markdown.index("What a video took") :]
    assert row_of(cost, "cache-0.1")[-1] == "25.0 %"
    assert row_of(cost, "cache-0")[-1] == "-"
    assert re.search(r"over GFLOP per frame, by arm", markdown)
    assert "evaluations per frame, by arm" not in markdown
