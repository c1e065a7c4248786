"""Which claims of the paper a run may say something of, and what it says of memory over the length."""

from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import RunFolder
from test_report import ARMS

from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.report.claims import OF_PROCESS, check_claims
from miga_bench.harness.report.comparability import comparability
from miga_bench.harness.report.comparisons import compare
from miga_bench.harness.report.measures import measure_of, measures_of, value_of
from miga_bench.harness.report.published import published_table
from miga_bench.harness.report.section import CHANGING, gather, section
from miga_bench.harness.report.tables import claim_table
from miga_bench.harness.results import Arm, Results, Row, _changes, read_results
from miga_bench.harness.scorers import SuiteScores

SUBJECT = measure_of("subject_consistency")
MIGA = {"miga": Arm("miga", "miga", {}, {})}
LENGTHS = (161, 321, 1001)


def memory_run(gpu, texts=8, place="gpu", machines=("one",)):
    """Return MIGA's videos of each text at three lengths; ``gpu`` is MiB by length and text."""
    rows = [
        Row(
            "miga",
            f"{frames}-{text}",
            f"text {text}",
            0,
            "k",
            "done",
            Path(),
            frames,
            cost={"peak_memory_mib": {place: gpu(frames, text)}},
            origin={
                "hardware": {"gpu" if place == "gpu" else "cpu": machines[text % len(machines)]},
                "processes": 1,
            },
        )
        for frames in LENGTHS
        for text in range(texts)
    ]
    return Results(Path(), "e", {"published": "efficiency"}, {}, MIGA, rows, {}, {})


def constancy(run):
    (found,) = [f for f in check_claims(run, []) if f.claim.constant is not None]
    return found


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        (lambda text: text % 3, "holds"),
        (lambda text: 500 + text, "does not hold"),
        (lambda text: 200 * (text % 2), "not shown"),
        (lambda text: -500 - text, "does not hold"),
        (lambda text: -200 * (text % 2), "not shown"),
    ],
)
def test_memory_over_the_length(more, verdict):
    """66 MiB of 9,919, as the paper has it, are within the margin of 1 %."""
    found = constancy(memory_run(lambda frames, text: 9919 + (more(text) if frames > 161 else 0)))
    assert found.verdict == verdict
    assert found.comparison.prompts == 8


def test_memory_of_a_process_of_few_texts_or_of_several_machines_gets_no_verdict():
    def level(frames, text):
        return 9919.0

    assert OF_PROCESS in constancy(memory_run(level, place="process")).verdict
    assert "too few prompts" in constancy(memory_run(level, texts=5)).verdict
    assert "not shown: made on" in constancy(memory_run(level, machines=("one", "two"))).verdict
    run = memory_run(level)
    one_length = [row for row in run.rows if row.frames == 161]
    run = Results(Path(), "e", {}, {}, MIGA, one_length, {}, {})
    assert not [f for f in check_claims(run, []) if f.claim.constant is not None]


def test_the_same_text_at_several_lengths_is_one_prompt():
    arms = {name: Arm(name, name, {}, {}) for name in ("fifo", "miga")}
    rows = [
        Row(arm, f"{f}-{t}", f"text {t}", 0, "k", "done", Path(), f, scores={"a": s + t / 100})
        for arm, s in (("fifo", 0.1), ("miga", 0.2))
        for f in LENGTHS
        for t in range(2)
    ]
    run = Results(Path(), "e", {}, {}, arms, rows, {}, {})
    found = compare(run, {"miga": 1, "fifo": -1}, measure_of("a"))
    assert (found.n, found.prompts, found.verdict) == (6, 2, "too few prompts")


def filled(tmp_path, name="run", about=None, then=None):
    texts = {f"p{i}": f"text {i}" for i in range(8)}
    run = RunFolder(tmp_path, name, ARMS, texts, about=about)
    for i in range(8):
        run.item("fifo", f"p{i}", 0, {SUBJECT.label: 0.9 + i / 1000, "world/path": 0.5})
        run.item("miga", f"p{i}", 0, {SUBJECT.label: 0.92 + i / 990, "world/path": 0.5})
    folder = run.close()
    if then:
        file = folder / "run.yaml"
        file.write_text(file.read_text().replace("then: {}", f"then: {{12: {then}}}"))
    return read_results(folder)


def judged(run):
    return {f.claim.text for f in check_claims(run, [SUBJECT])}


def test_claims_on_scores_are_of_runs_beside_their_own_table(tmp_path):
    subject, seconds = (
        "MIGA keeps the subject better than FIFO",
        "FIFO needs fewer seconds per frame",
    )
    for about in ({}, {"published": "table_1_vbench"}):
        found = judged(filled(tmp_path / str(len(about)), about=about))
        assert subject in found
    found = judged(filled(tmp_path, about={"published": "table_2_narrlv"}))
    assert subject not in found
    assert any(text.startswith(seconds) for text in found)  # costs are costs


@pytest.mark.parametrize(
    ("suite", "networks", "frames", "prompts", "shown"),
    [
        ("vbench-long", "vbench", 128, None, True),
        ("vbench-long", "vbench", 1000, None, False),
        ("vbench-long", "vbench", 128, 6, False),
        ("vbench-long", "tiny", 128, None, False),
        ("vbench", "vbench", 128, None, False),
    ],
)
def test_the_papers_difference_is_marked_where_scores_are_not_comparable(
    suite, networks, frames, prompts, shown
):
    """Breaks if the paper's of 128 frames passes for comparable to scores of 1,000, or by other networks."""
    label = SUBJECT.label if networks == "vbench" else f"{SUBJECT.label}[{networks}]"
    texts = [wish.prompts[0].text for wish in read_wishes("vbench")][:prompts]
    arms = {name: Arm(name, name, {}, {}) for name in ("fifo", "miga")}
    rows = [
        Row(
            arm,
            text,
            text,
            0,
            "k",
            "done",
            Path(),
            frames,
            cost={"nfe": 9, "total_seconds": 1.0, "peak_memory_mib": {"process": 9.0}},
            scores={label: s},
            origin={"processes": 1},
        )
        for arm, s in (("fifo", 0.9), ("miga", 0.95))
        for text in texts
    ]
    scorers = [SuiteScores(suite, networks=networks).identity()]
    run = Results(Path(), "r", {}, {"backbone": "videocrafter2"}, arms, rows, {}, {}, scorers)
    measure = measure_of(label)
    found = check_claims(run, [measure])
    (subject,) = (f for f in found if f.claim.text == "MIGA keeps the subject better than FIFO")
    assert subject.alike == (["videocrafter2"] if shown else [])
    said = comparability(run, published_table("table_1_vbench"), [measure])
    assert said.startswith("Made as videocrafter2 was") == shown  # one rule for both
    rows = claim_table([subject], "Claims").groups[0].rows
    marked = "" if shown else ", not comparable"
    assert rows[0][-1].text == f"+4.74 (videocrafter2{marked})"


def test_claims_of_consistency_are_not_judged_where_prompts_change_and_that_is_said(tmp_path):
    still = filled(tmp_path, "still")
    moving = filled(tmp_path, "moving", then="another text")
    assert not still.changing
    assert moving.changing
    subject = "MIGA keeps the subject better than FIFO"
    assert subject in judged(still)
    assert subject not in judged(moving)
    told = [getattr(block, "text", "") for block in section(gather(moving), "m", 0)]
    assert CHANGING in told
    assert CHANGING not in [getattr(b, "text", "") for b in section(gather(still), "s", 0)]


@pytest.mark.parametrize(
    ("prompts", "source", "changing"),
    [
        ({"tiny_target_action_tna_1-1-0": {"then": {}}}, "narrlv:tiny", False),
        ({"tiny_target_action_tna_3-1-0": {"then": {}}}, "narrlv:tiny", True),
        ({"my_tna_3": {"then": {}}}, ["a text"], False),
        ({"p": {"then": {8: "more"}}}, ["a text"], True),
    ],
)
def test_stories_told_at_once_ask_for_a_change_too(prompts, source, changing):
    assert _changes(prompts, source) is changing


@pytest.mark.parametrize(
    ("networks", "other", "shown"),
    [("tiny", 0.9, 1), ("tiny", 0.8, 2), ("", 0.9, 2)],
)
def test_one_number_of_one_encoder_is_shown_once(networks, other, shown):
    labels = [
        f"{name}_consistency[{networks}]" if networks else f"{name}_consistency"
        for name in ("subject", "background")
    ]
    scores = dict(zip(labels, (0.9, other), strict=True))
    rows = [Row("miga", "p", "x", 0, "k", "done", Path(), scores=scores)]
    measures = measures_of([Results(Path(), "r", {}, {}, MIGA, rows, {}, {})])
    assert [m.label for m in measures] == labels[:shown]
    assert ("same number" in measures[0].meaning) == (shown == 1)


def test_a_gpus_memory_that_nobody_counted_is_not_the_processs():
    """Breaks if an export, whose GPU memory PyTorch does not see, is held against PyTorch by gigabytes less."""
    row = memory_run(lambda frames, text: 9919.0).rows[0]
    assert value_of(row, "cost/peak_memory") == 9919.0
    exported = replace(row, cost={"peak_memory_mib": {"process": 900.0}})
    assert value_of(exported, "cost/peak_memory") is None
