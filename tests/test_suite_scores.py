"""Suites of scores of a run: clip by clip by VBench-Long, and two that would give numbers of one label."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_workers import configuration
from test_scorers import Counting, item_of, write

from miga_bench.cli import main
from miga_bench.errors import Notice
from miga_bench.harness.request import PromptAt
from miga_bench.harness.scorers import SuiteScores, WorldScores


@pytest.mark.parametrize(
    ("frames", "clips"),
    [(40, [(0, 31), (8, 39)]), (64, [(0, 31), (32, 63)]), (20, [(0, 19)])],
)
def test_the_curve_of_a_long_video_is_the_scores_of_its_clips(tmp_path, frames, clips):
    scorer = SuiteScores("vbench-long", ["temporal_flickering"], networks="tiny")
    scorer.use(type("B", (), {"device": "cpu"})())
    video = write(tmp_path / "a.mp4", torch.rand(frames, 3, 16, 16))
    found = scorer.score(video, item_of([PromptAt("a")], frames))
    curve = found.series["temporal_flickering"]
    assert [(first, last) for first, last, _ in curve] == clips
    mean = sum(score for *_, score in curve) / len(curve)
    assert found.scores["temporal_flickering"] == pytest.approx(mean, abs=1e-6)


class Twin(Counting):
    """Another scorer whose numbers have the same labels."""

    name = "twin"

    def labels(self):
        return frozenset(["none", "count"])


def test_two_scorers_of_one_label_are_refused_before_work(tmp_path, capsys):
    """Breaks if one scorer's numbers silently replace another's in results and reports."""
    twins = [{"class_path": "test_suite_scores.Twin", "init_args": {"version": n}} for n in (1, 2)]
    made = configuration(tmp_path, "run", model__metrics=twins)
    assert main(["predict", "--config", str(made)]) == 2
    said = capsys.readouterr().err
    assert "metrics: two scorers give count" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "items").exists()


def test_a_run_on_apples_gpu_is_scored_on_the_cpu():
    """It has no float64: breaks if every video's scores end with torch's word on that."""
    backbone: Any = SimpleNamespace(device="mps")
    scorer = SuiteScores()
    with pytest.warns(Notice, match="scores run on the CPU: mps has no float64") as told:
        scorer.use(backbone)
    assert len(told) == 1
    assert scorer._device == "cpu"
    assert {score.device for score in scorer._scores} == {torch.device("cpu")}


def test_labels_are_those_of_the_numbers():
    """Breaks if scorers whose labels meet are not seen to: both suites give the same flickering."""
    backbone: Any = SimpleNamespace(device="cpu")
    tiny, long = SuiteScores(), SuiteScores("vbench-long", networks="tiny")
    for scorer in (tiny, long):
        scorer.use(backbone)
    assert "temporal_flickering" in tiny.labels() & long.labels()
    assert not WorldScores().labels() & tiny.labels()
