"""Reports: the numbers in the tables, what is refused, and the page in a browser."""

import csv
import json
import math
import re
import subprocess
from html import unescape
from pathlib import Path
from unittest.mock import patch

import pytest
from mlflow_picture import browser
from report_runs import RunFolder, reflective_passes

from miga_bench.cli import main
from miga_bench.harness.report.claims import all_claims
from miga_bench.harness.report.comparisons import _verdict
from miga_bench.harness.report.curves import _family, along_axis
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.pictures import axis_curves
from miga_bench.harness.report.published import published_table, published_tables
from miga_bench.harness.results import Arm, Results, Row
from miga_bench.harness.seals import opened, sealed
from miga_bench.harness.shipped import shipped
from miga_bench.metrics.statistics import estimate, sign_test

NASTY = (
    "a <script>alert('x')</script> & \"red\" | pipe *star* `tick` [link](http://example.com) $x$"
)
ARMS = {
    "fifo": {"method": "fifo", "settings": {"steps": 27}},
    "miga": {"method": "miga", "settings": {"steps": 27, "zigzag": 3, "reflection": "continuous"}},
}
SUBJECT = "subject_consistency[tiny]"
ABOUT = {
    "title": "A <b>title</b>",
    "question": "Which is better?",
    "published": "table_1_vbench",
    "baseline": "fifo",
}


def fill(root, name="first", arms=ARMS, prompts=8, gain=0.03, about=ABOUT, **changes):
    """Write a run whose subject scores are ``0.9 + prompt / 1000`` plus the gain for all but the first arm."""
    texts = {f"p{i}": NASTY if i == 0 else f"prompt {i}" for i in range(prompts)}
    run = RunFolder(root, name, arms, texts, (0,), about, **changes)
    for number, arm in enumerate(arms):
        for i, prompt in enumerate(texts):
            # the gain itself varies by prompt: +-0.001
            more = (gain + 0.001 * (-1) ** i) if number else 0.0
            scores = {
                SUBJECT: 0.9 + i / 1000 + more,
                "world/path": 0.5 + 0.01 * i * (-1) ** (i + number),
            }
            series = {SUBJECT: [[0, 11, 0.95], [12, 23, 0.9 + more]]}
            passes = reflective_passes() if arm == "miga" else ()
            run.item(arm, prompt, 0, scores, series=series, passes=passes, nfe=240 * (number + 1))
    return run


def made(capsys, *arguments):
    """Run the verb and return the JSON of its last line."""
    code = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def text_of(html):
    return unescape(re.sub(r"<[^>]+>", " ", html))


def row_of(markdown, start):
    """Return the cells of a table's first row that begins with some text."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_published_numbers_are_the_papers():
    tables = published_tables()
    assert {t.number for t in tables.values()} == {1, 2, 3, 4, 5, None}
    assert all(t.source == "arXiv 2605.18233" for t in tables.values())
    first = published_table("table_1_vbench")
    assert first.of("wan2.1-1.3b")["miga"].scores["background_consistency"] == 95.50
    assert first.of("videocrafter2")["freepca"].endless is False
    assert published_table("table_2_narrlv").of("wan2.1-1.3b")["miga"].scores["tna4_t_act"] == 62.90
    assert [row.at for row in published_table("table_4_zigzag_width").rows] == [1, 2, 4, 6, 8]
    # the paper's row with neither part is FIFO, whose numbers are those of Table 1
    neither = published_table("table_3_components").of("videocrafter2")["fifo"]
    assert neither.scores == first.of("videocrafter2")["fifo"].scores
    assert shipped("components", "videocrafter2")["run"]["about"]["baseline"] == "fifo"
    for part in ("tta", "dce"):
        assert {"fifo": -1, part: 1} in [claim.weights for claim in all_claims()]
    for table in tables.values():
        for row in table.rows:
            four = [score for name, score in row.scores.items() if name != "overall_score"]
            if "overall_score" in row.scores:  # a typing error would show here
                assert row.scores["overall_score"] == pytest.approx(sum(four) / 4, abs=0.011)


def test_claims_agree_with_the_papers_own_numbers():
    for claim in all_claims():
        for difference in claim.paper().values():
            lower = measure_of(claim.measure).better == "lower"
            assert (difference < 0) == lower, claim.text


def test_a_report_made_again_deletes_its_own_pictures_alone(tmp_path, capsys):
    """Breaks if --force deletes a picture of the user's, or leaves one that nothing shows any more."""
    folder, out = fill(tmp_path).close(), tmp_path / "out"
    made(capsys, folder, "-o", out)
    figures = out / "figures"
    before = {path.name for path in figures.iterdir()}
    (figures / "my-plot.png").touch()
    page = (out / "report.md").read_text()
    (figures / "first-gone.png").touch()
    (out / "report.md").write_text(page + "\n![gone](figures/first-gone.png)\n")
    made(capsys, folder, "-o", out, "--force")
    assert {path.name for path in figures.iterdir()} == before | {"my-plot.png"}


def test_numbers_of_the_tables(tmp_path, capsys):
    folder = fill(tmp_path).close()
    document = made(capsys, folder, "-o", tmp_path / "out")
    (run,) = document["runs"]
    values = [0.9 + i / 1000 + 0.03 + 0.001 * (-1) ** i for i in range(8)]
    by_hand = estimate(values, list(range(8)))
    got = run["arms"]["miga"][SUBJECT]
    assert got["mean"] == pytest.approx(sum(values) / 8)
    assert (got["low"], got["high"]) == pytest.approx((by_hand.low, by_hand.high))
    found = run["differences"]["miga"][SUBJECT]
    assert found["difference"] == pytest.approx(0.03)
    reach = 2.364624 * 0.001 * math.sqrt(8 / 7) / math.sqrt(8)  # Student's t with 7 degrees
    assert (found["low"], found["high"]) == pytest.approx((0.03 - reach, 0.03 + reach), rel=1e-5)
    assert found["p"] == sign_test(8, 0)
    assert found["verdict"] == "better"

    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("| miga | ")]
    assert any("96.46" in line for line in rows)  # the paper's
    assert any(f"{100 * got['mean']:.2f} ({100 * by_hand.low:.2f} to " in line for line in rows)
    assert any("| -3.11 |" in line for line in rows)  # ours minus the paper's: 93.35 - 96.46
    assert "Not comparable with wan2.1-1.3b" in markdown
    assert "the videos have 24 frames, the paper's 161" in markdown
    # 480 evaluations of 24 frames; 27 of 32 judged passes ... counted by hand from the passes
    passes = reflective_passes()
    judged = sum(one["similarity"] is not None for one in passes)
    triggers = sum(one["triggered"] for one in passes)
    assert f"| {100 * triggers / judged:.1f} % |" in markdown
    assert "| miga | 480 | 20.00 |" in markdown


def test_seconds_of_several_machines_compare_no_arms_and_are_said(tmp_path, capsys):
    folder = fill(tmp_path).close()
    (run,) = made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")["runs"]
    timed = "FIFO needs fewer seconds per frame than MIGA"
    verdicts = {claim["claim"]: claim["verdict"] for claim in run["claims"]}
    assert "made on" not in verdicts[timed]
    assert "Not all videos were made alike" not in (tmp_path / "out" / "report.md").read_text()
    for number in range(3):
        path = tmp_path / "items" / f"first-miga-p{number}-0" / "manifest.json"
        manifest = opened(path.read_text())
        manifest["timings"] |= {"hardware": {"gpu": "a GPU", "cpu": "a CPU"}, "processes": 2}
        manifest["timings"]["git"] = {"commit": "decade", "changed": True}
        path.write_text(json.dumps(sealed({**manifest, "versions": {"torch": "2.8.0"}})))
    (run,) = made(capsys, folder, "-o", tmp_path / "new", "--prompts-shown", "0")["runs"]
    mixed = {claim["claim"]: claim["verdict"] for claim in run["claims"]}
    other = "not shown: made on different hardware, or by teams of different size"
    assert mixed == {**verdicts, timed: other}
    markdown = (tmp_path / "new" / "report.md").read_text()
    assert (
        "made alike: 13 on unknown hardware; 3 on a GPU, 2 processes a video. Seconds" in markdown
    )
    assert row_of(markdown, "videos made on") == [
        "videos made on",
        "unknown or a GPU, 2 processes a video",
    ]
    assert "torch 2.9.0 or 2.8.0" in markdown
    assert "c0ffee or decade with changes that were not committed" in markdown


def test_few_verdicts_are_not_said_to_make_a_wrong_one(tmp_path, capsys):
    made(capsys, fill(tmp_path).close(), "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "2 that could show a difference: at most about 0.1 would by chance alone" in page
    assert "they are not independent" in page


def test_an_interval_that_is_not_finite_gets_no_verdict():
    measure = measure_of("a")
    for low, high in ((math.nan, math.nan), (0.1, math.inf), (math.inf, math.inf)):
        assert _verdict(measure, low, high, 8) == "too few prompts"
    assert _verdict(measure, 0.1, 0.2, 8) == "better"


def test_few_prompts_get_no_verdict(tmp_path, capsys):
    folder = fill(tmp_path, prompts=5).close()
    (run,) = made(capsys, folder, "-o", tmp_path / "out")["runs"]
    assert run["differences"]["miga"][SUBJECT]["verdict"] == "too few prompts"
    assert all(claim["verdict"].startswith("not shown") for claim in run["claims"])


@pytest.mark.parametrize("prompts", [2, 3])
def test_two_prompts_have_no_interval(tmp_path, capsys, prompts):
    """Breaks if a share of videos is said to lie between -585 and 685 %."""
    made(capsys, fill(tmp_path, prompts=prompts).close(), "-o", tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("| miga | ")]
    assert any("93." in line for line in rows)
    assert any(re.search(r"\(9\d\.\d+ to 9", line) for line in rows) is (prompts > 2)


def test_missing_scores_never_become_numbers(tmp_path, capsys):
    texts = {f"p{i}": f"x {i}" for i in range(8)}
    run = RunFolder(tmp_path, "gaps", ARMS, texts, about=ABOUT)
    for arm in ARMS:
        for i in range(8):
            if (arm, i) == ("miga", 0):
                run.item(arm, "p0", error="NaN from the denoiser")
            elif (arm, i) == ("miga", 1):
                continue  # never made
            else:
                value = None if i == 2 else 0.9 + i / 100
                reasons = {"world/hue_drift": "nothing to measure"}
                run.item(arm, f"p{i}", 0, {SUBJECT: value, "world/hue_drift": None}, reasons)
    document = made(capsys, run.close(), "-o", tmp_path / "out")
    (found,) = document["runs"]
    assert found["videos"] == {"done": 14, "failed": 1, "missing": 1}
    assert found["arms"]["miga"]["world/hue_drift"]["mean"] is None
    assert found["arms"]["miga"][SUBJECT]["n"] == 5
    assert found["differences"]["miga"][SUBJECT]["pairs"] == 5
    assert found["differences"]["miga"]["world/hue_drift"]["difference"] is None
    page = text_of((tmp_path / "out" / "report.html").read_text())
    assert "NaN from the denoiser" in page  # named, with its reason
    assert "p1, seed 0" in page
    assert "nothing to measure" in page
    assert "not scored" in page  # p2 has no score and no reason
    assert "p2, seed 0" in page
    assert not re.search(r"\bnan\b|None", page.replace("NaN from the denoiser", ""))


def test_the_same_run_gives_the_same_bytes(tmp_path, capsys):
    folder = fill(tmp_path).close()
    for out in ("one", "two"):
        made(capsys, folder, "-o", tmp_path / out)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*"))
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*"))
    assert len(files) > 5
    for name in files:
        one = tmp_path / "one" / name
        assert one.is_dir() or one.read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_texts_are_shown_as_they_are(tmp_path, capsys):
    folder = fill(tmp_path).close()
    made(capsys, folder, "-o", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in html
    assert "<b>title" not in html
    assert NASTY in unescape(html)
    markdown = (tmp_path / "out" / "report.md").read_text()
    prose = re.sub(r"```.*?```", "", markdown, flags=re.S)  # the configuration is a block of code
    assert "<script" not in prose
    assert not re.search(r"(?<!\\)\]\(http", prose)
    assert r"\| pipe \*star\* \`tick\`" in prose
    for table in re.findall(r"(?:^\|.*\n)+", prose, flags=re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1  # every row has as many cells as the heading
    for picture in re.findall(r"!\[[^\]]*\]\((.*?)\)", markdown):
        assert (tmp_path / "out" / picture).stat().st_size > 0


def test_several_runs_share_a_table(tmp_path, capsys):
    one = fill(tmp_path, "wan").close()
    two = fill(tmp_path, "vc2", backbone="tiny-videocrafter2").close()
    document = made(capsys, one, two, "-o", tmp_path / "out", "--prompts-shown", "0")
    assert [run["name"] for run in document["runs"]] == ["wan", "vc2"]
    markdown = (tmp_path / "out" / "report.md").read_text()
    combined = markdown.partition("beside arXiv")[2].partition("\n## ")[0]
    assert "Paper: arXiv 2605.18233, Table 1, wan2.1-1.3b" in combined
    assert "Paper: arXiv 2605.18233, Table 1, videocrafter2" in combined
    assert "Ours: tiny-videocrafter2, run vc2" in combined
    assert not list((tmp_path / "out" / "figures").glob("*.jpg"))


def test_runs_of_one_name_each_have_their_own_configuration_beside_the_report(tmp_path, capsys):
    folders = [fill(tmp_path / root, "wan").close() for root in ("a", "b")]
    made(capsys, *folders, "-o", tmp_path / "out", "--prompts-shown", "0")
    told = re.findall(r"--config (\S+)", (tmp_path / "out" / "report.md").read_text())
    assert len(set(told)) == 2
    assert all((tmp_path / "out" / name).exists() for name in told)


def test_each_videos_numbers_lie_beside_the_report(tmp_path, capsys):
    folder = fill(tmp_path).close()
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    with (tmp_path / "out" / "first.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16
    videos = {(line["arm"], line["prompt_id"]): line for line in lines}
    assert videos["fifo", "p0"]["prompt"] == NASTY
    assert float(videos["fifo", "p3"][SUBJECT]) == 0.903
    assert float(videos["miga", "p3"][SUBJECT]) == pytest.approx(0.932)
    assert (videos["fifo", "p3"]["nfe"], videos["miga", "p3"]["nfe"]) == ("240", "480")


def test_a_video_without_a_score_has_an_empty_field_and_the_reason(tmp_path, capsys):
    run = RunFolder(tmp_path, "first", ARMS, {"a": "one", "b": "two"}, (0,), ABOUT)
    run.item("fifo", "a", 0, {SUBJECT: 0.9})
    run.item("miga", "a", 0, {SUBJECT: None}, reasons={SUBJECT: "nothing to measure"})
    made(capsys, run.close(), "-o", tmp_path / "out", "--prompts-shown", "0")
    with (tmp_path / "out" / "first.csv").open(newline="") as file:
        lines = {(line["arm"], line["prompt_id"]): line for line in csv.DictReader(file)}
    assert (lines["miga", "a"][SUBJECT], lines["miga", "a"]["reasons"]) == (
        "",
        "nothing to measure",
    )
    assert (lines["miga", "b"]["status"], lines["miga", "b"]["nfe"]) == ("missing", "")


def test_curves_over_a_setting(tmp_path, capsys):
    arms = {
        f"zigzag-{n}": {"method": "miga", "settings": {"zigzag": n, "reflection": "off"}}
        for n in (1, 4, 8)
    }
    about = {"published": "table_4_zigzag_width", "axis": "zigzag"}
    folder = fill(tmp_path, "zigzag", arms, about=about).close()
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    assert (tmp_path / "out" / "figures" / "zigzag-curve-subject-consistency-tiny.png").exists()
    assert "compare shapes, not heights" in (tmp_path / "out" / "report.md").read_text()


def test_the_papers_curve_on_its_own_model_is_not_said_to_be_of_another(tmp_path):
    settings = {f"zigzag-{n}": {"zigzag": n} for n in (1, 4)}
    arms = {name: Arm(name, "miga", told, told) for name, told in settings.items()}
    found = {"subject_consistency": 0.9}
    rows = [Row(arm, "p", "x", 0, arm, "done", Path(), scores=found) for arm in arms]
    words = {}
    for backbone in ("videocrafter2", "tiny-videocrafter2"):
        run = Results(Path(), "z", {"axis": "zigzag"}, {"backbone": backbone}, arms, rows, {}, {})
        table = published_table("table_4_zigzag_width")
        with patch("miga_bench.harness.report.plots.setting_plot") as drawn:
            blocks = axis_curves(run, "z", [measure_of("subject_consistency")], table)
        words[backbone] = drawn.call_args.args[-1], blocks[-1].caption
    assert words["videocrafter2"][0] == "paper"
    assert "another model" not in words["videocrafter2"][1]
    assert words["tiny-videocrafter2"][0] == "paper, another model"
    assert "of another model" in words["tiny-videocrafter2"][1]


@pytest.mark.parametrize("order", [("zigzag", "stage2_steps"), ("stage2_steps", "zigzag")])
def test_a_grid_of_two_settings_has_a_curve_for_each_value_of_the_other(order):
    arms, rows = {}, []
    for zigzag in (1, 3, 7):
        for depth in (0, 5):
            values = {"zigzag": zigzag, "stage2_steps": depth}
            name = ".".join(f"{setting}-{values[setting]}" for setting in order)
            arms[name] = Arm(name, "miga", values, values)
            rows += [
                Row(name, "p", "x", 0, name, "done", Path(), scores={"a": zigzag + depth / 10})
            ]
    run = Results(Path(), "grid", {}, {}, arms, rows, {}, {})
    curves = along_axis(run, "zigzag", measure_of("a"))
    assert {name: [(x, found.mean) for x, found in points] for name, points in curves.items()} == {
        "stage2_steps-0": [(1, 1), (3, 3), (7, 7)],
        "stage2_steps-5": [(1, 1.5), (3, 3.5), (7, 7.5)],
    }


def test_an_arm_without_a_number_begins_the_curves_or_is_on_none():
    values = {"none": 0, "deep-2": 2, "deep-4": 4, "preset": 3}
    arms = {name: Arm(name, "miga", {"depth": n}, {}) for name, n in values.items()}
    rows = [Row(a, "p", "x", 0, a, "done", Path(), scores={"a": n}) for a, n in values.items()]
    run = Results(Path(), "depth", {}, {}, arms, rows, {}, {})
    curves = along_axis(run, "depth", measure_of("a"))
    assert {name: [x for x, _ in points] for name, points in curves.items()} == {"deep": [0, 2, 4]}


@pytest.mark.parametrize(
    ("name", "axis", "family"),
    [
        ("zigzag-4", "zigzag", ""),
        ("anchor-2", "guidance_frames", "anchor"),
        ("none", "guidance_frames", "none"),
        ("reflection_threshold-0.01.zigzag-3", "reflection_threshold", "zigzag-3"),
        ("reflection_threshold-1e-05", "reflection_threshold", ""),
    ],
)
def test_families_of_arms(name, axis, family):
    assert _family(name, axis) == family


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["nowhere"], "nowhere is no run: it has no run.yaml"),
        (["empty"], "empty has no video that is done (16 are wanted): make the run first"),
        (["broken"], "cannot be read"),
        (["first", "first"], "given twice"),
        (["first", "-o", "full"], "full has report.md: choose another folder, or --force"),
        (["first", "-o", "file"], "file is a file"),
        (["first", "--prompts-shown", "-1"], "--prompts-shown -1: it must be 0 or more"),
        (
            ["first", "--baseline", "fiffo"],
            "first has no arm 'fiffo': did you mean fifo? known: fifo, miga",
        ),
        (["first", "--forse"], "did you mean --force?"),
        ([], "RUN"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, monkeypatch, arguments, rule):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path).close()
    RunFolder(tmp_path, "empty", ARMS, {f"p{i}": f"x {i}" for i in range(8)}).close()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.yaml").write_text("- [")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.md").touch()
    (tmp_path / "file").touch()
    try:
        code = main(["report", *arguments])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert rule in err
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(browser() is None, reason="no Chromium here to open the page in")
def test_the_page_in_a_browser(tmp_path, capsys):
    """All pictures load, nothing is asked of the network, nothing is logged as wrong."""
    made(capsys, fill(tmp_path).close(), "-o", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    probe = tmp_path / "probe.html"
    # the page forbids scripts, so the test's copy lifts that for its own
    checked = html.replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'", 1
    )
    script = (
        "<script>addEventListener('load', () => { const all = [...document.images];"
        " document.body.dataset.seen = all.length + '/' + all.filter(i => i.naturalWidth > 0).length"
        " + '/' + performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        " })</script>"
    )
    probe.write_text(checked.replace("</body>", script + "</body>"))
    command = [
        *(
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={tmp_path / 'profile'}",
        *("--enable-logging=stderr", "--dump-dom", f"file://{probe}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    pictures, loaded, asked = re.search(r'data-seen="(\d+)/(\d+)/(\d+)"', done.stdout).groups()
    assert pictures == loaded == str(html.count("<img "))
    assert int(pictures) >= 5
    assert asked == "0"
    assert "CONSOLE" not in done.stderr
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "@import" not in html
    assert "url(" not in html
