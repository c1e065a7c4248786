"""NarrLV's scores: the released code's numbers, the gates, what is absent, and what must always hold."""

import json
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrlv_fixtures import NATURAL, TINY, synthetic_answers

from miga_bench.errors import UserError
from miga_bench.metrics.narrative import NarrativeExpression
from miga_bench.metrics.narrlv.scorer import (
    accuracy,
    collapse_to,
    read_answer,
    score_video,
    summarize,
)
from miga_bench.metrics.narrlv.suite import EVOLUTIONS, LAYOUT, SCENE_TYPE, TARGET, load_suite

GOLDEN = json.loads((Path(__file__).parent / "golden" / "narrlv.json").read_text())
SUITES = {"tiny": load_suite(TINY), "natural": load_suite(NATURAL)}
STORY = next(
    item for item in SUITES["tiny"].items if item.factor == "scene_attribute" and item.tna == 4
)
STATES, CHANGES = (f"{EVOLUTIONS[STORY.factor]}_{i}" for i in (0, 1))
YES, NO = ["yes"] * 5, ["no"] * 5


def all_answers(item, answer=YES, **changed):
    """The same answer to every question, but "no" to whether something is broken."""
    answers = {
        category: [NO if "Anomaly" in category else answer for _ in questions]
        for category, questions in item.questions.items()
    }
    return answers | {category.replace("_", " "): value for category, value in changed.items()}


@pytest.mark.parametrize("name", SUITES)
def test_scores_are_those_of_the_released_code(name):
    suite, golden = SUITES[name], GOLDEN["suites"][name]
    scores = []
    for item in suite.items:
        if item.key not in golden["videos"]:
            continue  # written since the released code was run
        answers, quality = synthetic_answers(item, 0)
        scores.append(score_video(item, answers, quality=quality))
    assert len(scores) == len(golden["videos"]) >= 27
    for score in scores:
        expected = golden["videos"][score.key]
        assert [score.fid, score.cov, score.coh] == [
            None if value is None else pytest.approx(value, abs=1e-12) for value in expected
        ]
    summary = summarize(scores)
    assert {f"{factor}_{tna}" for factor, tna in summary.cells} == set(golden["means"])
    for (factor, tna), cell in summary.cells.items():
        expected = golden["means"][f"{factor}_{tna}"]
        assert [cell.fid, cell.cov, cell.coh] == [
            None if value is None else pytest.approx(value, abs=1e-12) for value in expected
        ]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Yes.", True),
        ("No, it is not", False),
        ("yes and no", False),
        ("I do not know", False),
        ("unknown", False),
        ("YES", True),
        ("perhaps", None),
        ("", None),
        (None, None),
    ],
)
def test_answers_are_read_as_in_the_original(text, meaning):
    assert read_answer(text) is meaning


def test_only_five_answers_count_and_unreadable_ones_count_neither_way():
    assert accuracy(["yes", "no", "maybe", "yes", "no", "yes", "yes"]) == 0.5
    assert accuracy(["maybe"]) is None


def test_a_video_that_does_everything_scores_one():
    score = score_video(STORY, all_answers(STORY), quality=5)
    assert (score.fid, score.cov, score.coh, score.atoms) == (1, 1, 1, 4)
    worst = {category: [NO if "Anomaly" not in category else YES for _ in questions]
             for category, questions in STORY.questions.items()}  # fmt: skip
    score = score_video(STORY, worst)
    assert (score.fid, score.cov, score.coh) == (0, 0, 0)


def test_without_quality_its_terms_are_left_out():
    answers = all_answers(STORY) | {STATES: [YES, YES, NO, NO]}
    bare, rated = score_video(STORY, answers), score_video(STORY, answers, quality=3)
    # two of three transitions lose a state; half of the atoms are told
    assert bare.cov == 0.5
    assert bare.coh == pytest.approx((1 / 3 + 0.5) / 2)
    assert rated.cov == pytest.approx((0.5 + 0.6) / 2)
    assert rated.coh == pytest.approx((1 / 3 + 0.6 + 0.5) / 3)
    assert (bare.quality, rated.quality) == (None, 3)


def test_the_paper_differs_from_the_code_in_threshold_quality_and_mean():
    quarter = ["yes", "no", "no", "no", "maybe"]  # accuracy 0.25: between the two thresholds
    answers = all_answers(STORY) | {STATES: [YES, YES, YES, quarter], "Scene Type": [NO]}
    code, paper = (score_video(STORY, answers, variant=v) for v in ("code", "paper"))
    assert code.rho == 1
    assert paper.rho == 0.75
    assert paper.coh == pytest.approx((2 / 3 + 0.75) / 2)
    assert score_video(STORY, answers, quality=5, variant="paper") == paper
    # no scene, so no layout either: 4 of 6 categories, which have one question each
    assert code.fid == pytest.approx(4 / 6)
    item = SUITES["natural"].items[0]
    two = replace(item, questions={**item.questions, TARGET: ("Is there a boat?", "And a gull?")})
    uneven = all_answers(two) | {TARGET: [YES, NO]}
    assert score_video(two, uneven).fid == pytest.approx(5.5 / 6)
    assert score_video(two, uneven, variant="paper").fid == pytest.approx(6 / 7)


def test_what_is_not_there_has_no_layout():
    gone = all_answers(STORY) | {TARGET: [["yes", "no", "no", "no", "no"]]}
    assert score_video(STORY, gone).categories[LAYOUT] == 0
    there = all_answers(STORY) | {TARGET: [["yes", "yes", "no", "no", "no"]]}
    assert score_video(STORY, there).categories[LAYOUT] == 1
    # where no layout is asked, the released code adds a zero, the paper does not
    without = replace(STORY, questions={k: v for k, v in STORY.questions.items() if k != LAYOUT})
    answers = all_answers(without) | {SCENE_TYPE: [NO]}
    assert score_video(without, answers).fid == pytest.approx(4 / 6)
    assert score_video(without, answers, variant="paper").fid == pytest.approx(4 / 5)


def test_of_two_evolutions_the_first_is_gated_and_the_last_says_how_many_atoms_are_told():
    """The release has stories that ask about two at once."""
    action = EVOLUTIONS["target_action"]
    more = {f"{action}_0": ("Jumps?", "Runs?", "Sits?", "Lies?"), f"{action}_1": ("A?", "B?", "C?")}
    both = replace(STORY, questions={**STORY.questions, **more})
    changed = {STATES: [YES, YES, NO, NO], f"{action}_0": [YES, NO, NO, NO]}
    score = score_video(both, all_answers(both) | changed)
    assert score.rho == 0.25
    assert score.categories[CHANGES] == pytest.approx(1 / 3)
    assert score.categories[f"{action}_1"] == 1
    assert score.cov == pytest.approx((0.5 + 0.25) / 2)
    assert score.coh == pytest.approx(((1 / 3 + 1) / 2 + 0.25) / 2)


def test_what_cannot_be_scored_is_absent_with_a_reason():
    mute = all_answers(STORY) | {STATES: [["perhaps"] * 5, YES, YES, YES]}
    score = score_video(STORY, mute)
    assert (score.fid, score.cov, score.coh, score.rho, score.atoms) == (1, None, None, None, None)
    assert "says yes or no" in score.reasons["cov"]
    assert score.unparsed == 5
    empty = replace(STORY, questions={**STORY.questions, TARGET: ()})
    score = score_video(empty, all_answers(empty))
    assert score.fid is None
    assert score.reasons["fid"] == "'Main Target Category' has no questions"
    assert score_video(empty, all_answers(empty), variant="paper").fid == 1
    single = next(item for item in SUITES["tiny"].items if item.tna == 1)
    score = score_video(single, all_answers(single))
    assert (score.fid, score.cov, score.coh) == (1, 1, None)
    summary = summarize([score_video(STORY, mute), score])
    assert summary.cells[STORY.factor, 4].absent == {"cov": 1, "coh": 1}
    assert summary.cells[single.factor, 1].absent == {}
    assert summary.provenance["unparsed"] == 5
    assert set(summary.provenance["absent"]) == {STORY.key}


def test_collapsing_is_a_choice_with_a_label():
    assert collapse_to(0.3, 0.6, 0.9) == pytest.approx(0.6)
    assert [collapse_to(0.3, 0.6, 0.9, how) for how in ("fid", "cov", "coh")] == [0.3, 0.6, 0.9]
    assert collapse_to(0.3, 0.6, None, tna=1) == pytest.approx(0.45)  # one atom has no transition
    assert collapse_to(0.3, 0.6, None) is None
    assert collapse_to(None, 0.6, 0.9) is None
    assert collapse_to(None, 0.6, None, tna=1) is None
    assert collapse_to(None, 0.6, None, "cov") == 0.6
    assert collapse_to(0.3, 0.6, None, "coh") is None
    summary = summarize([score_video(STORY, all_answers(STORY))], collapse="cov")
    assert summary.provenance["collapse"] == "cov"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: score_video(STORY, {}), "answer every category"),
        (lambda: score_video(STORY, all_answers(STORY) | {STATES: [YES]}), "4 questions"),
        (lambda: score_video(STORY, all_answers(STORY) | {STATES: [YES, [], YES, YES]}), "to 3"),
        (lambda: score_video(STORY, all_answers(STORY), quality=0.8), "1 to 5"),
        (lambda: score_video(STORY, all_answers(STORY), variant="book"), "code, paper"),
        (lambda: summarize([]), "at least one"),
        (lambda: collapse_to(1, 1, 1, "median"), "mean, fid, cov, coh"),
        (lambda: NarrativeExpression(collapse="median"), "mean, fid, cov, coh"),
    ],
)
def test_wrong_input_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


items = st.sampled_from(SUITES["tiny"].items + SUITES["natural"].items)
variants = st.sampled_from(["code", "paper"])


@settings(deadline=None, max_examples=60)
@given(items, st.integers(0, 10**6), variants, st.one_of(st.none(), st.floats(1, 5)))
def test_scores_are_in_range(item, seed, variant, quality):
    answers, _ = synthetic_answers(item, seed)
    score = score_video(item, answers, variant=variant, quality=quality)
    for value in (score.fid, score.cov, score.coh, score.rho):
        assert value is None or 0 <= value <= 1
    assert (score.coh is None) == (item.tna == 1)


@settings(deadline=None, max_examples=60)
@given(items, st.integers(0, 10**6), variants, st.data())
def test_another_yes_never_lowers_coverage_or_coherence(item, seed, variant, data):
    answers, _ = synthetic_answers(item, seed)
    before = score_video(item, answers, variant=variant)
    category = data.draw(st.sampled_from([c for c in item.questions if "Evolution" in c]))
    question = data.draw(st.integers(0, len(item.questions[category]) - 1))
    vote = data.draw(st.integers(0, 4))
    answers[category][question][vote] = "yes"
    after = score_video(item, answers, variant=variant)
    assert after.cov >= before.cov - 1e-12
    assert after.fid == before.fid
    if item.tna > 1:
        assert after.coh >= before.coh - 1e-12


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.randoms())
def test_the_order_of_videos_does_not_matter(seed, rng):
    chosen = rng.sample(SUITES["tiny"].items, 12)
    scores = [score_video(item, synthetic_answers(item, seed)[0]) for item in chosen]
    shuffled = random.Random(seed).sample(scores, len(scores))
    assert summarize(scores) == summarize(shuffled)


def test_the_metric_adds_up_what_the_functions_say():
    chosen = SUITES["tiny"].items[::3]
    made = [(item, *synthetic_answers(item, 1)) for item in chosen]
    scores = [score_video(item, answers, quality=quality) for item, answers, quality in made]
    metric, first, second = NarrativeExpression(), NarrativeExpression(), NarrativeExpression()
    for number, one in enumerate(made):
        metric.update(*one)
        (first if number % 2 else second).update(*one)
    result = {name: value.item() for name, value in metric.compute().items()}
    for name in ("fid", "cov", "coh"):
        there = [v for score in scores if (v := getattr(score, name)) is not None]
        assert result[name] == pytest.approx(sum(there) / len(there), abs=1e-6)
    cells = summarize(scores).cells.values()
    mean = sum(cell.collapsed for cell in cells) / len(cells)
    assert result["collapsed"] == pytest.approx(mean, abs=1e-6)
    first.merge_state(second)  # what processes do when they come together
    merged = {name: value.item() for name, value in first.compute().items()}
    assert merged == result
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert all(value.isnan() for value in metric.compute().values())


def test_the_metric_scores_and_collapses_as_it_is_told():
    made = [(item, synthetic_answers(item, 1)[0]) for item in SUITES["tiny"].items[::9]]
    metric = NarrativeExpression("paper", "cov")
    for one in made:
        metric.update(*one, quality=3.0)  # which the paper's formulas leave out
    scores = [score_video(*one, variant="paper") for one in made]
    cells = summarize(scores, collapse="cov", variant="paper").cells.values()
    result = metric.compute()
    assert result["fid"].item() == pytest.approx(
        sum(score.fid for score in scores) / len(scores), abs=1e-6
    )
    mean = sum(cell.collapsed for cell in cells) / len(cells)
    assert result["collapsed"].item() == pytest.approx(mean, abs=1e-6)


def _process(rank, store, results):
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=3)
    metric = NarrativeExpression()
    for item in SUITES["tiny"].items[rank:40:2] if rank < 2 else ():
        metric.update(item, *synthetic_answers(item, 1))
    results.put({name: value.item() for name, value in metric.compute().items()})
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_agree_though_one_has_no_video(tmp_path):
    context = multiprocessing.get_context("fork")  # what is loaded need not be loaded again
    results = context.Queue()
    store = f"file://{tmp_path}/store"
    processes = [context.Process(target=_process, args=(i, store, results)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = [results.get() for _ in processes]
    metric = NarrativeExpression()
    for item in SUITES["tiny"].items[:40]:
        metric.update(item, *synthetic_answers(item, 1))
    whole = {name: value.item() for name, value in metric.compute().items()}
    assert found == [whole] * 3


def test_the_metric_plots_its_numbers():
    metric = NarrativeExpression()
    metric.update(STORY, all_answers(STORY))
    figure, axes = metric.plot()
    assert figure is not None
    assert axes.get_ylim()[1] >= 1
