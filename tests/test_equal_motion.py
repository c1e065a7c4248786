"""What is left of a gain where both videos move alike, and where that cannot be said."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import RunFolder
from scipy import stats
from test_report import ARMS, made, row_of

from miga_bench.harness.report.claims import check_claims
from miga_bench.harness.report.comparisons import OF_MORE_ARMS, UNTOLD, EqualMotion, compare
from miga_bench.harness.report.differences import verdicts_in_words
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.tables import claim_table, verdict_table
from miga_bench.harness.results import Arm, Results, Row, read_results

PATH = measure_of("world/path")
SHIFTS = (-0.02, -0.01, 0.1, 0.1, 0.11, 0.12, 0.1, 0.11)  # of motion; two pairs move less
UNSAID = "it cannot be said in a"


def run_of(arms, texts=8):
    """Return a run by what each arm's videos score; ``arms`` holds functions of the text's number."""
    rows = [
        Row(arm, f"p{i}", f"x {i}", 0, "k", "done", Path(), scores=scores(i))
        for arm, scores in arms.items()
        for i in range(texts)
    ]
    model = {"backbone": "tiny-wan"}
    return Results(Path(), "r", {}, model, {a: Arm(a, a, {}, {}) for a in arms}, rows, {}, {})


def against(high, texts=8):
    """Return the comparison of ``a`` of an arm with one that scores 0.5 and moves by 0.6."""
    run = run_of({"fifo": lambda i: {"a": 0.5, "world/path": 0.6}, "miga": high}, texts)
    return compare(run, {"miga": 1, "fifo": -1}, measure_of("a"), PATH)


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
    assert found.equal == EqualMotion(None, None, None, UNTOLD, 8)
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "also at equal motion" not in page
    assert "does not tell these videos apart" in page
    assert "At equal motion it cannot be said in a." in page
    assert "the gain is not shown" not in page
    assert "regression dilution" in page


def test_pairs_without_motion_are_counted_out_of_equal_motion_and_that_is_said(tmp_path, capsys):
    """Breaks if a line over 7 pairs passes for one over the 9 of the difference."""
    run = RunFolder(tmp_path, "gaps", ARMS, {f"p{i}": f"x {i}" for i in range(9)})
    for i in range(9):
        path = 0.6 + (i - 4) / 100 if i > 1 else None
        run.item("fifo", f"p{i}", 0, {"a": 0.5, "world/path": 0.6})
        run.item("miga", f"p{i}", 0, {"a": 0.6 + i / 1e4, "world/path": path})
    folder = run.close()
    found = compare(read_results(folder), {"miga": 1, "fifo": -1}, measure_of("a"), PATH)
    assert (found.n, found.equal.n, found.equal.verdict) == (9, 7, "better")
    (told,) = made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")["runs"]
    assert told["differences"]["miga"]["a"]["at_equal_motion"]["n"] == 7
    page = (tmp_path / "out" / "report.md").read_text()
    table = page.partition("miga minus fifo\n")[2]
    assert row_of(table, "a (x 100)")[-1].removesuffix(" |").endswith("; n = 7)")
    assert "has no measure of motion is not in it" in page


def test_motion_of_three_arms_that_adds_up_to_zero_is_no_equal_motion():
    """Breaks if motions of 0.4, 0.5 and 0.6 pass for alike, as 2 x 0.5 - 0.4 - 0.6 is zero."""
    run = run_of(
        {
            "one": lambda i: {"a": 0.5, "world/path": 0.4},
            "four": lambda i: {"a": 0.6 + i / 1e4, "world/path": 0.5 + (i - 3.5) / 100},
            "eight": lambda i: {"a": 0.5, "world/path": 0.6},
        }
    )
    found = compare(run, {"four": 2, "one": -1, "eight": -1}, measure_of("a"), PATH)
    assert found.verdict == "better"
    assert found.equal == EqualMotion(None, None, None, OF_MORE_ARMS, 8)


@pytest.mark.parametrize(
    ("less", "texts", "verdict"),
    [
        (0, 10, "cannot be said: it moves more in every pair"),
        (1, 10, "cannot be said: it moves more in 9 of 10 pairs"),
        (2, 10, "better"),
        (8, 10, "better"),
        (9, 10, "cannot be said: it moves less in 9 of 10 pairs"),
        (1, 6, "cannot be said: it moves more in 5 of 6 pairs"),
        (2, 6, "better"),
    ],
)
def test_equal_motion_lies_inside_the_data(less, texts, verdict):
    """Breaks if one pair of ten is enough to draw a line to the edge."""

    def high(i):
        return {"a": 0.6 + i % 2 / 1e4, "world/path": 0.6 + (i - less + 0.5) / 100}

    assert against(high, texts).equal.verdict == verdict


def test_what_rounding_leaves_of_motion_tells_no_videos_apart():
    """Breaks if differences of 1e-16, on both sides of zero, are fitted by a line."""

    def high(i):
        return {"a": 0.6 + i / 1e4, "world/path": 0.6 + (-1) ** i * 1.2e-16}

    assert high(0)["world/path"] != 0.6 != high(1)["world/path"]
    assert against(high).equal.verdict == UNTOLD


def test_motion_is_said_to_be_an_outcome_itself(tmp_path, capsys):
    pages = []
    for motion in ("world/path", "dynamic_degree"):
        run = RunFolder(tmp_path, motion[:5], ARMS, {f"p{i}": f"x {i}" for i in range(6)})
        for i in range(6):
            for arm in ARMS:
                run.item(arm, f"p{i}", 0, {"a": 0.5, motion: i / 10})
        made(capsys, run.close(), "-o", tmp_path / motion[-4:], "--prompts-shown", "0")
        pages.append((tmp_path / motion[-4:] / "report.md").read_text())
    assert all("Motion is itself an outcome of the method" in page for page in pages)
    assert ["where a subject breaks up" in page for page in pages] == [True, False]


@pytest.mark.parametrize(
    ("own", "slope", "verdict", "detail", "words"),
    [
        (0.1, 0, "better", "also at equal motion", ""),
        (0, 1, "better", "not shown at equal motion", "the gain is not shown in a"),
        (-0.05, 2, "better", "worse at equal motion", "it is worse in a"),
        (-0.1, 0, "worse", "also at equal motion", ""),
        (0, -1, "worse", "not shown at equal motion", "the loss is not shown in a"),
        (0.05, -2, "worse", "better at equal motion", "it is better in a"),
        (-0.06, 0.8, "no difference shown", "worse at equal motion", "it is worse in a"),
        (0.06, -0.8, "no difference shown", "better at equal motion", "it is better in a"),
        (0, 0, "no difference shown", "", ""),
        (-0.1, 0, "worse", "equal motion: cannot be said", UNSAID),
    ],
)
def test_every_verdict_that_changes_at_equal_motion_is_told(own, slope, verdict, detail, words):
    """Breaks if a loss that vanishes at equal motion, or one that only shows there, is passed over."""

    def high(i):
        shift = SHIFTS[i] + (words == UNSAID) / 10
        return {"a": 0.5 + own + slope * shift + 0.01 * (-1) ** i, "world/path": 0.6 + shift}

    found = against(high)
    assert found.verdict == verdict
    cell = verdict_table({"miga": [found]}, "fifo", "Verdicts").groups[0].rows[0][1]
    last = cell.detail.splitlines()[-1]
    assert last.startswith(detail) if detail else "motion" not in cell.detail
    told = verdicts_in_words("miga", "fifo", [found], True)
    assert (told.partition(" At equal motion ")[2] or ".") == f"{words}."


def test_a_claim_that_does_not_hold_has_its_word_at_equal_motion_too():
    """Breaks if only claims that hold are held against motion."""
    label = "subject_consistency"
    run = run_of(
        {
            "fifo": lambda i: {label: 0.9, "world/path": 0.6},
            "miga": lambda i: {
                label: 0.9 - SHIFTS[i] + 0.01 * (-1) ** i,
                "world/path": 0.6 + SHIFTS[i],
            },
        }
    )
    found = [f for f in check_claims(run, [measure_of(label), PATH]) if label in f.claim.measure]
    cells = [row[1] for row in claim_table(found, "Claims").groups[0].rows]
    assert [(cell.text, cell.detail) for cell in cells] == [
        ("does not hold", "not shown at equal motion")
    ]
