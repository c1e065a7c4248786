"""What is left of a gain where both videos move alike, and where that cannot be said."""

import numpy as np
import pytest
from report_runs import RunFolder
from scipy import stats
from test_report import ARMS, made

from miga_bench.harness.report.comparisons import UNTOLD, EqualMotion, compare
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.results import read_results


def test_equal_motion_is_the_lines_height(tmp_path):
    """Scores that only follow motion leave nothing at equal motion; a gain of their own stays."""
    run = RunFolder(tmp_path, "line", ARMS, {f"p{i}": f"x {i}" for i in range(8)})
    for i in range(8):
        shift = (i - 2) * 0.1  # on both sides of zero
        noise = 0.001 * (-1) ** (i // 2)
        low = {"a": 0.5, "b": 0.5, "world/path": 0.6}
        run.item("fifo", f"p{i}", 0, low)
        high = {
            "a": 0.5 - 0.2 * shift + noise,
            "b": 0.6 - 0.2 * shift + noise,
            "world/path": 0.6 + shift,
        }
        run.item("miga", f"p{i}", 0, high)
    results = read_results(run.close())
    motion = measure_of("world/path")
    follows = compare(results, {"miga": 1, "fifo": -1}, measure_of("a"), motion)
    own = compare(results, {"miga": 1, "fifo": -1}, measure_of("b"), motion)
    assert follows.difference == pytest.approx(-0.2 * 0.15)
    assert follows.equal.difference == pytest.approx(0, abs=1e-3)
    assert follows.equal.verdict == "no difference shown"
    assert own.equal.difference == pytest.approx(0.1, abs=1e-3)
    assert own.equal.verdict == "better"


def test_the_interval_at_equal_motion_is_clustered_by_prompt(tmp_path):
    """Against the formula of the module, pair by pair; that some pairs move alike is enough for a line."""
    run = RunFolder(tmp_path, "seeds", ARMS, {f"p{i}": f"x {i}" for i in range(7)}, seeds=(0, 1))
    gains, shifts = {}, {}
    for i in range(7):
        for seed in (0, 1):
            gain, shift = 0.05 + (i * 7 % 5) / 50 + seed / 90, (i % 3 + seed) / 10
            gains[i, seed], shifts[i, seed] = gain, shift
            run.item("fifo", f"p{i}", seed, {"a": 0.5, "world/path": 0.5})
            run.item("miga", f"p{i}", seed, {"a": 0.5 + gain, "world/path": 0.5 + shift})
    motion = measure_of("world/path")
    results = read_results(run.close())
    found = compare(results, {"miga": 1, "fifo": -1}, measure_of("a"), motion).equal
    table = np.array([[1.0, shifts[pair]] for pair in gains])
    values = np.array(list(gains.values()))
    line = np.linalg.lstsq(table, values, rcond=None)[0]
    rest = dict(zip(gains, values - table @ line, strict=True))
    bread = np.linalg.inv(table.T @ table)
    meat = np.zeros((2, 2))
    for i in range(7):
        pull = sum(rest[i, seed] * np.array([1.0, shifts[i, seed]]) for seed in (0, 1))
        meat += np.outer(pull, pull)
    error = (7 / 6 * 13 / 12 * (bread @ meat @ bread)[0, 0]) ** 0.5
    reach = stats.t.ppf(0.975, 6) * error
    expected = pytest.approx((line[0], line[0] - reach, line[0] + reach))
    assert (found.difference, found.low, found.high) == expected


@pytest.mark.parametrize(("way", "word"), [(-1, "less"), (1, "more")])
def test_motion_on_one_side_only_says_nothing_at_equal_motion(tmp_path, way, word):
    run = RunFolder(tmp_path, "side", ARMS, {f"p{i}": f"x {i}" for i in range(8)})
    for i in range(8):
        run.item("fifo", f"p{i}", 0, {"a": 0.5, "world/path": 0.6})
        run.item("miga", f"p{i}", 0, {"a": 0.6 + i / 1e4, "world/path": 0.6 + way * (1 + i) / 100})
    results = read_results(run.close())
    found = compare(results, {"miga": 1, "fifo": -1}, measure_of("a"), measure_of("world/path"))
    assert found.verdict == "better"
    assert found.equal.difference is None
    assert f"moves {word} in every pair" in found.equal.verdict


def test_motion_that_tells_no_videos_apart_says_nothing_at_equal_motion(tmp_path, capsys):
    """Breaks if a dynamic degree of 1 for all videos makes every gain one "also at equal motion"."""
    run = RunFolder(tmp_path, "full", ARMS, {f"p{i}": f"x {i}" for i in range(8)})
    for i in range(8):
        moves = float(i > 1)  # prompts differ, the two videos of each do not
        run.item("fifo", f"p{i}", 0, {"a": 0.5, "dynamic_degree": moves})
        run.item("miga", f"p{i}", 0, {"a": 0.6 + i / 1e4, "dynamic_degree": moves})
    folder = run.close()
    measures = measure_of("a"), measure_of("dynamic_degree")
    found = compare(read_results(folder), {"miga": 1, "fifo": -1}, *measures)
    assert found.verdict == "better"
    assert found.equal == EqualMotion(None, None, None, UNTOLD)
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "also at equal motion" not in page
    assert "does not tell these videos apart" in page
    assert "At equal motion it cannot be said in a." in page
    assert "the gain is not shown" not in page
    assert "regression dilution" in page
