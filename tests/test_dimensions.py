"""Prompts that are for some of VBench's dimensions: what scores their videos, and a run's numbers then."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import report_runs
import torch
import yaml
from report_runs import RunFolder
from run_workers import configuration
from test_report import ARMS, made
from test_scorers import item_of, write

from miga_bench.harness.predict import predict
from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.report.comparisons import compare
from miga_bench.harness.report.measures import asked, mean_over, measure_of, measures_of
from miga_bench.harness.request import PromptAt
from miga_bench.harness.results import Results, Row, read_results
from miga_bench.harness.scorers import SuiteScores, WorldScores, narrowed
from miga_bench.harness.tracking.facts import facts
from miga_bench.metrics.suites import OVERALL

SUBJECT = ("subject_consistency", "motion_smoothness")
SCENE, STILL = ("background_consistency",), ("temporal_flickering",)
KINDS = [SUBJECT, SCENE, STILL]
OVERALL_LABEL = "overall_score[tiny,dis]"


def bases(labels):
    return {label.partition("[")[0] for label in labels}


def test_the_list_of_vbench_has_each_dimensions_own_prompts_some_of_each_first():
    wishes = read_wishes("vbench")
    counts = Counter(name for wish in wishes for name in wish.dimensions)
    shared = dict.fromkeys((*SUBJECT, "dynamic_degree"), 72)
    assert counts == {**shared, "background_consistency": 86, "temporal_flickering": 75}
    assert len({wish.dimensions for wish in wishes}) == 3
    assert {name for wish in wishes[:3] for name in wish.dimensions} >= set(OVERALL)
    assert not any(wish.dimensions for wish in read_wishes("tiny-world"))


def test_a_video_is_scored_by_its_own_dimensions_in_a_file_of_their_own(tmp_path):
    """Breaks if what a few dimensions found is taken for what all did."""
    backbone: Any = SimpleNamespace(device="cpu")
    whole, few, long = (
        SuiteScores(),
        SuiteScores("tiny", [*SUBJECT]),
        SuiteScores("vbench-long", networks="tiny"),
    )
    for scorer in (whole, few, long):
        scorer.use(backbone)
    (own,) = narrowed([whole], SUBJECT)
    assert (own.file, own.identity()) == (few.file, few.identity())
    assert own.file != whole.file
    assert narrowed([few], SCENE) == []
    assert narrowed([long], SCENE)[0].identity()["networks"].keys() == {*SCENE}
    world = WorldScores()
    assert narrowed([whole, world], ()) == [whole, world]
    assert narrowed([world], SCENE) == [world]
    video = write(tmp_path / "a.mp4", torch.rand(5, 3, 16, 16))
    item = item_of([PromptAt("a")], 5)
    found, all_found = (one.score(video, item).scores for one in (own, whole))
    assert bases(found) == {*SUBJECT}
    assert found.items() <= all_found.items()


def prompts(kinds):
    texts = ("a red circle", "a blue star", "a green cross")
    said = [{"dimensions": list(kind)} if kind else {} for kind in kinds]
    return [{"prompt": text, **one} for text, one in zip(texts, said, strict=True)]


def test_runs_that_share_videos_have_each_the_scores_it_asked_for(tmp_path):
    """Breaks if a field that decides no pixel makes videos anew, or if one run reads another's scores."""

    def run(name, kinds):
        asked = {"data__prompts": prompts(kinds), "data__seeds": [0]}
        config = configuration(
            tmp_path, name, model__metrics=[{"class_path": "SuiteScores"}], **asked
        )
        assert predict(["--config", str(config)])["status"] == "done"
        document = yaml.safe_load((tmp_path / name / "run.yaml").read_text())
        return read_results(tmp_path / name), document

    own, told = run("own", KINDS)
    assert told["dimensions"] == {f"p00{n}-0": [*kind] for n, kind in enumerate(KINDS, 1)}
    assert "dimensions" not in str(told["made_of"])
    assert [bases(row.scores) for row in own.rows] == [{*kind} for kind in KINDS]
    whole, plain = run("whole", [()] * 3)
    assert plain.keys() == told.keys() - {"dimensions"}
    assert [row.key for row in whole.rows] == [row.key for row in own.rows]
    assert len([p for p in (tmp_path / "items").iterdir() if not p.name.startswith(".")]) == 3
    every = {*OVERALL, "dynamic_degree", "overall_score"}
    assert all(bases(row.scores) == every for row in whole.rows)
    turned, _ = run("turned", [*KINDS[1:], KINDS[0]])
    assert [bases(row.scores) for row in turned.rows] == [{*SCENE}, {*STILL}, {*SUBJECT}]
    assert read_results(tmp_path / "own").rows == own.rows
    again, told = run("own", [()] * 3)
    assert "dimensions" not in told
    assert [row.scores for row in again.rows] == [row.scores for row in whole.rows]


LABELS = {
    "subject_consistency": "subject_consistency[tiny]",
    "background_consistency": "background_consistency[tiny]",
    "motion_smoothness": "motion_smoothness[dis]",
    "temporal_flickering": "temporal_flickering",
}


def suite(kind, long=False):
    plan = {"long": long, "networks": "tiny", "dimensions": [*kind], "development": True}
    return {"scorer": "suite", "plan": plan}


def own_run(root, monkeypatch, counts=(8, 7, 6), long=()):
    """Write a run of two arms whose prompts are for some dimensions each; return its folder."""
    kinds = {f"{'abc'[n]}{i}": kind for n, kind in enumerate(KINDS) for i in range(counts[n])}
    run = RunFolder(root, "own", ARMS, {name: f"x {name}" for name in kinds})
    for name, kind in kinds.items():
        monkeypatch.setattr(report_runs, "SCORER", f"suite-{KINDS.index(kind)}.json")
        for arm, more in (("fifo", 0.0), ("miga", 0.04)):
            worth = {n: 0.5 + OVERALL.index(n) / 10 + int(name[1:]) / 100 for n in kind}
            gain = {n: more * (1 + OVERALL.index(n)) for n in kind}
            run.item(arm, name, scores={LABELS[n]: worth[n] + gain[n] for n in kind})
    folder = run.close()
    document = yaml.safe_load((folder / "run.yaml").read_text())
    document["scorers"] = {
        f"suite-{n}.json": suite(kind, kind in long) for n, kind in enumerate(KINDS)
    }
    document["dimensions"] = {f"{name}-0": [*kind] for name, kind in kinds.items()}
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    return folder


def test_the_overall_score_is_the_mean_of_the_four_each_over_its_own_prompts(
    tmp_path, monkeypatch, capsys
):
    """Breaks if a score has other dimensions' videos in it, or if the mean is over all videos."""
    folder = own_run(tmp_path, monkeypatch)
    run = read_results(folder)
    means = {name: mean_over(run, run.of("fifo"), label) for name, label in LABELS.items()}
    assert [means[name].n for name in OVERALL] == [8, 7, 8, 6]
    overall = mean_over(run, run.of("fifo"), OVERALL_LABEL)
    assert overall.mean == pytest.approx(sum(one.mean or 0 for one in means.values()) / 4)
    assert (overall.n, overall.clusters) == (6, 6)
    assert [m.label for m in measures_of([run])] == [OVERALL_LABEL, *(LABELS[n] for n in OVERALL)]
    logged = facts(run, run.arms["fifo"])
    assert logged.metrics["scores/overall_score_tiny_dis"] == pytest.approx(overall.mean)
    assert OVERALL_LABEL not in logged.table["columns"]
    (told,) = made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")["runs"]
    one = told["differences"]["miga"][OVERALL_LABEL]
    assert one["difference"] == pytest.approx(0.04 * (1 + 2 + 3 + 4) / 4)
    assert (one["verdict"], one["pairs"]) == ("better", 6)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "dimensions that its prompt is for" in page
    assert "Scores that are not there" not in page
    assert "without a score" not in page  # which is of prompts that are for it
    assert "21 / 0" in page  # every prompt goes up by what it has


def test_no_verdict_on_the_overall_score_where_one_of_the_four_has_few_prompts(
    tmp_path, monkeypatch, capsys
):
    folder = own_run(tmp_path, monkeypatch, counts=(30, 30, 2))
    (told,) = made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")["runs"]
    assert told["differences"]["miga"][OVERALL_LABEL]["verdict"] == "too few prompts"


@pytest.mark.parametrize(("counts", "long"), [((8, 7, 0), ()), ((8, 7, 6), (SUBJECT,))])
def test_no_overall_score_without_all_four_of_one_suite(tmp_path, monkeypatch, counts, long):
    """Breaks if scores of whole videos and of clips are made one number."""
    run = read_results(own_run(tmp_path, monkeypatch, counts, long))
    assert OVERALL_LABEL not in {m.label for m in measures_of([run])}
    assert run.dimensions


def test_a_run_yaml_with_broken_dimensions_is_one_line(tmp_path, monkeypatch, capsys):
    folder = own_run(tmp_path, monkeypatch, counts=(1, 1, 1))
    document = yaml.safe_load(Path(folder / "run.yaml").read_text())
    for broken in ([1], {"a0-0": 5}):
        (folder / "run.yaml").write_text(yaml.safe_dump({**document, "dimensions": broken}))
        with pytest.raises(Exception, match="cannot be read") as error:
            read_results(folder)
        assert str(error.value).isprintable()


def test_only_scores_that_were_asked_for_are_counted_as_missing(tmp_path, capsys):
    """Breaks if a story lacks other stories' cells, or a seed a dimension that takes the first alone."""
    cells = [f"narrlv/tna2_{cell}" for cell in ("s_att", "t_att")]
    run = RunFolder(tmp_path, "stories", ARMS, {f"p{i}": f"x {i}" for i in range(12)})
    for i in range(12):
        for arm in ARMS:
            lost = (arm, i) == ("miga", 3)
            scores = {} if lost else {cells[i % 2]: 0.5 + i / 100}
            run.item(arm, f"p{i}", scores=scores)
    folder = run.close()
    results = read_results(folder)
    found = [compare(results, {"miga": 1, "fifo": -1}, measure_of(cell)) for cell in cells]
    assert [(one.n, one.dropped) for one in found] == [(6, 0), (5, 1)]
    made(capsys, folder, "-o", tmp_path / "out", "--prompts-shown", "0")
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.count("without a score") == 1

    rows = [
        Row(arm, "p", "x", seed, "k", "done", Path(), scores={label: 0.5 for label in labels})
        for arm in ARMS
        for seed, labels in ((0, LABELS.values()), (1, [LABELS["temporal_flickering"]]))
    ]
    own = {"p-0": [*LABELS], "p-1": ["temporal_flickering"]}
    results = Results(Path(), "r", {}, {}, {}, rows, {}, {}, dimensions=own)
    assert asked(results, LABELS["subject_consistency"]) == {("p", 0)}
    assert asked(results, LABELS["temporal_flickering"]) == {("p", 0), ("p", 1)}
    assert asked(results, "cost/nfe_per_frame") == {("p", 0), ("p", 1)}
