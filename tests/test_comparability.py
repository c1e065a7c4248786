"""When scores can be set beside the paper's: by settings, scorers, prompts, and the paper's own arms only."""

import dataclasses
from dataclasses import asdict
from pathlib import Path

import pytest

from miga_bench.backbones import BACKBONES
from miga_bench.harness.arms import ArmPlan, as_text, expand
from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.report.comparability import (
    REENCODED,
    comparability,
    why_not_comparable,
)
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.pictures import drift_curves
from miga_bench.harness.report.published import published_tables
from miga_bench.harness.report.scoring import collapses, scored_by_clips
from miga_bench.harness.report.tables import caption_of, glossary
from miga_bench.harness.results import Arm, Results, Row
from miga_bench.harness.scorers import SuiteScores
from miga_bench.harness.shipped import experiments, shipped
from miga_bench.sampling.presets import resolve

SUBJECT = measure_of("subject_consistency")
WAN = {"backbone": "wan2.1-1.3b", "height": 480, "width": 832}
FRAMES = {"videocrafter2": 128, "wan2.1-1.3b": 161}
STORY = {
    "scorer": "story",
    "suite": "release",
    "judge": "http://localhost:8000/v1",
    "judge_model": "Qwen/Qwen2.5-VL-72B-Instruct",
    "votes": 5,
    "variant": "code",
    "collapse": "mean",
}
CELL = "narrlv/tna2_s_att"


def rows_of(name, arm, frames):
    """Return an arm's videos of all prompts of the list, or of NarrLV's stories."""
    if name != "table2":
        texts = [wish.prompts[0].text for wish in read_wishes("vbench")]
        return [Row(arm, t, t, 0, arm, "done", Path(), frames) for t in texts]
    cells = published_tables()["table_2_narrlv"].columns
    return [
        Row(arm, f"{cell}-{n}", "x", 0, arm, "done", Path(), frames, scores={f"narrlv/{cell}": 0.5})
        for cell in cells
        for n in range(20)
    ]


def run_of(name, on="wan2.1-1.3b", model=WAN, **settings):
    """Return a shipped experiment as it were if it had been made, with some settings of all arms changed."""
    told = shipped(name, on)["model"]
    own = {k: as_text(v) for k, v in (told.get("settings") or {}).items()}
    plans = expand(ArmPlan(told["method"], told["preset"], own), told.get("arms"), told.get("grid"))
    arms, rows = {}, []
    for arm, plan in plans.items():
        values = resolve(plan.method, BACKBONES[on], plan.preset, {**plan.settings, **settings})
        arms[arm] = Arm(arm, plan.method, asdict(values), {})
        frames = 81 if plan.method == "short" else FRAMES[on]
        rows += rows_of(name, arm, frames)
    (scorer,) = told["metrics"]
    suite = scorer["class_path"] == "SuiteScores"
    identity = SuiteScores(**scorer["init_args"]).identity() if suite else STORY
    return Results(Path(), name, {}, {"backbone": on, **model}, arms, rows, {}, {}, [identity])


@pytest.mark.parametrize("name", ["table1", "components", "guidance", "zigzag"])
@pytest.mark.parametrize("on", ["wan2.1-1.3b", "videocrafter2"])
def test_the_shipped_experiments_are_made_as_the_paper_says_whatever_arms_are_beside(name, on):
    key = shipped(name, on)["run"]["about"]["published"]
    table = published_tables()[key]
    if on not in table.backbones():
        return
    size = dict(zip(("height", "width"), table.sizes[on], strict=True))
    run = run_of(name, on, size)
    assert why_not_comparable(run, table, on, [SUBJECT]) == []
    assert comparability(run, table, [SUBJECT]).startswith(f"Made as {on} was")


PICTURES = "the judge behind a URL is shown pictures, NarrLV's a video at 10 frames a second"


def test_narrlv_scores_lack_the_quality_term_and_say_so():
    table = published_tables()["table_2_narrlv"]
    why = why_not_comparable(run_of("table2"), table, "wan2.1-1.3b", [measure_of(CELL)])
    assert why == [PICTURES, "NarrLV's scores are without its quality term (Q-Align)"]
    here = {**STORY, "judge": STORY["judge_model"], "judge_model": None}
    run = dataclasses.replace(run_of("table2"), scorers=[here])
    assert PICTURES not in why_not_comparable(run, table, "wan2.1-1.3b", [measure_of(CELL)])
    assert why_not_comparable(rated(run), table, "wan2.1-1.3b", [measure_of(CELL)]) == []


def rated(run):
    return dataclasses.replace(run, scorers=[{**run.scorers[0], "quality": "abc"}])


def test_our_own_choices_are_named_beside_what_the_paper_says():
    """Breaks if VideoCrafter2's queues are said to be the paper's without a word of their rescale."""
    told = {}
    for on in FRAMES:
        run, table = run_of("table1", on, {}), published_tables()["table_1_vbench"]
        told[on] = comparability(run, table, [SUBJECT]).partition("code differs: ")[2]
    for words in (
        "without the re-noise pass",
        "by the chunks of its code",
        "all prompts with 1 seed each",
    ):
        assert all(words in one for one in told.values()), words
    own = dataclasses.replace(run, dimensions={"p001-0": ["temporal_flickering"]})
    assert "on its own prompts with 1 seed each" in comparability(own, table, [SUBJECT])
    assert "dynamic rescale" in told["videocrafter2"]
    assert "dynamic rescale" not in told["wan2.1-1.3b"]
    assert "10 steps in stage 2" in told["wan2.1-1.3b"]
    released = run_of("table1", "videocrafter2", {})
    arms = {
        name: dataclasses.replace(arm, settings={**arm.settings, "rescale": False, "renoise": 10})
        for name, arm in released.arms.items()
    }
    said = comparability(dataclasses.replace(released, arms=arms), table, [SUBJECT])
    assert "dynamic rescale, which" not in said
    assert "re-noise" not in said.partition("code differs: ")[2]


def test_what_vbench_does_otherwise_to_a_measure_is_named_where_the_measure_is_shown():
    """Breaks if scores pass for made as the paper's without a word of its codec and its CLIP."""
    run, table = run_of("table1"), published_tables()["table_1_vbench"]
    told = {}
    for label in ("temporal_flickering", "background_consistency", "aesthetic_quality"):
        said = comparability(run, table, [measure_of(label)])
        assert said.startswith("Made as wan2.1-1.3b was")
        told[label] = said.partition("code differs: ")[2]
    assert [REENCODED in said for said in told.values()] == [
        True,
        True,
        False,
    ]  # the last is in no table
    half = "CLIP in float32, where VBench's is in float16 on a GPU (background consistency)"
    assert [half in said for said in told.values()] == [False, True, False]
    both = comparability(run, table, [measure_of("overall_score"), measure_of(label)])
    assert "float16 on a GPU (overall score)" in both
    tiny = comparability(run, table, [measure_of("background_consistency[tiny]")])
    assert REENCODED in tiny
    assert "float16" not in tiny


def test_another_precision_than_the_authors_is_named():
    table = published_tables()["table_1_vbench"]
    own = shipped("table1", "videocrafter2")["trainer"]["precision"]
    for precision, why in (
        (own, []),
        ("bf16-true", ["computed in bf16-true, by its authors in 32-true"]),
    ):
        model = {"precision": precision, "height": 320, "width": 512}
        run = run_of("table1", "videocrafter2", model)
        assert why_not_comparable(run, table, "videocrafter2", [SUBJECT]) == why


@pytest.mark.parametrize(
    ("scorer", "why"),
    [
        (
            SuiteScores("vbench").identity(),
            ["scored as whole videos, not by VBench-Long's clips"],
        ),
        (
            SuiteScores("vbench-long", development=False).identity(),
            ["scored without VBench-Long's clip-to-clip scores"],
        ),
        ({"class_path": "Mine"}, ["the run does not say what scored its videos"]),
    ],
)
def test_another_suite_than_the_papers_is_named(scorer, why):
    run = dataclasses.replace(run_of("table1"), scorers=[scorer])
    table = published_tables()["table_1_vbench"]
    assert why_not_comparable(run, table, "wan2.1-1.3b", [SUBJECT]) == why
    assert why_not_comparable(run, table, "wan2.1-1.3b", []) == []  # none of its columns is shown


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"suite": "natural"}, "the stories are of the suite natural, not NarrLV's"),
        ({"judge_model": None, "judge": "reader"}, "judged by reader, not Qwen2.5-VL-72B-Instruct"),
        (
            {"judge_model": f"{STORY['judge_model']}-AWQ"},
            "judged by Qwen/Qwen2.5-VL-72B-Instruct-AWQ, not Qwen2.5-VL-72B-Instruct",
        ),
        ({"votes": 1}, "answers to a question: 1, not 5"),
        ({"variant": "paper"}, "formulas of the variant paper, not code"),
        ({"collapse": "cov"}, "one number by cov, where the mean is taken for the paper's"),
    ],
)
def test_another_judge_or_formula_than_the_papers_is_named(changed, why):
    run = dataclasses.replace(run_of("table2"), scorers=[{**STORY, **changed}])
    table = published_tables()["table_2_narrlv"]
    assert why in why_not_comparable(run, table, "wan2.1-1.3b", [measure_of(CELL)])


def test_few_prompts_and_other_ones_are_named():
    whole = run_of("table1")
    texts = sorted({row.prompt for row in whole.rows})
    few = dataclasses.replace(whole, rows=[row for row in whole.rows if row.prompt in texts[:1]])
    table = published_tables()["table_1_vbench"]
    assert table.prompts == len(texts)
    (why,) = why_not_comparable(few, table, "wan2.1-1.3b", [SUBJECT])
    assert why == f"1 of VBench's {len(texts)} prompts for these scores, not all"
    own = [dataclasses.replace(row, prompt="a dog of mine") for row in few.rows]
    why = why_not_comparable(
        dataclasses.replace(whole, rows=[*whole.rows, *own]), table, "wan2.1-1.3b", [SUBJECT]
    )
    assert why == ["1 prompt that VBench does not have"]
    half = published_tables()["table_4_zigzag_width"]
    assert half.prompts == len(texts) // 2
    zigzag = run_of("zigzag", "videocrafter2", {"backbone": "videocrafter2"})
    short = dataclasses.replace(zigzag, rows=[r for r in zigzag.rows if r.prompt in texts[:9]])
    (why,) = why_not_comparable(short, half, "videocrafter2", [SUBJECT])
    assert why == f"9 of VBench's {len(texts)} prompts for these scores, not at least 116"


def test_the_glossary_names_the_rule_that_makes_one_number_of_three():
    measures = [measure_of(CELL), measure_of("narrlv/cov")]
    (group,) = glossary(measures, collapses(run_of("table2"))).groups
    told = [row[1].text for row in group.rows]
    assert told[0].endswith("as one number, by: mean")
    assert told[1].startswith("coverage: ")
    assert caption_of(run_of("table2"), "narrlv").endswith("without its quality term (Q-Align)")
    assert caption_of(rated(run_of("table2")), "narrlv") == "NarrLV's scores"


def test_few_stories_in_a_cell_are_named():
    whole = run_of("table2")
    few = dataclasses.replace(
        whole, rows=[row for row in whole.rows if not row.prompt_id.endswith("9")]
    )
    table = published_tables()["table_2_narrlv"]
    why = why_not_comparable(few, table, "wan2.1-1.3b", [measure_of(CELL)])
    assert "18 stories in a cell, not 20" in why


def test_other_settings_and_sizes_under_the_papers_preset_are_named():
    table = published_tables()["table_1_vbench"]
    run = run_of("table1", model={**WAN, "height": 128, "width": 128}, steps=27)
    why = why_not_comparable(run, table, "wan2.1-1.3b", [SUBJECT])
    assert why == [
        "the videos have 128 x 128 pixels, the paper's 832 x 480",
        "other settings: steps 27, not 54 (fifo, miga)",
    ]


def test_curves_over_clips_are_said_to_be_of_clips():
    whole = SuiteScores("vbench").identity()
    assert scored_by_clips(run_of("table1"))
    assert not scored_by_clips(dataclasses.replace(run_of("table1"), scorers=[whole]))
    rows = [Row("fifo", "p", "x", 0, "k", "done", Path(), 64, series={"a": [[0, 63, 0.5]]})]
    run = dataclasses.replace(run_of("table1"), rows=rows)
    assert "scores every clip by itself" in drift_curves(run, "x")[-1].caption
    run = dataclasses.replace(run, scorers=[whole])
    assert "scores every clip by itself" not in drift_curves(run, "x")[-1].caption


def test_how_many_windows_share_a_call_does_not_matter():
    table = published_tables()["table_1_vbench"]
    assert why_not_comparable(run_of("table1", batch=4), table, "wan2.1-1.3b", [SUBJECT]) == []


def test_a_run_without_the_papers_arms_is_not_comparable():
    (why,) = why_not_comparable(
        run_of("table1"), published_tables()["table_4_zigzag_width"], "videocrafter2", [SUBJECT]
    )
    assert why == "no arm of the run is in the paper's table"


def test_every_arm_of_a_published_table_of_scores_is_in_a_shipped_experiment():
    documents = [shipped(name, on) for name in experiments() for on in FRAMES]
    for key, table in published_tables().items():
        for backbone in table.backbones() if table.frames else ():
            arms = set()
            for one in documents:
                told = one["model"]
                if one["run"]["about"].get("published") == key and told["backbone"] == backbone:
                    base = ArmPlan(told["method"], "paper", {})
                    arms |= expand(base, told.get("arms"), told.get("grid")).keys()
            assert set(table.of(backbone)) <= arms
