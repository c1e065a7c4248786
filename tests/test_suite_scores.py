"""Suites of scores of a run: clip by clip by VBench-Long, and two that would give numbers of one label."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_workers import configuration
from test_scorers import Counting, item_of, write

from miga_bench.cli import main
from miga_bench.errors import Notice, UserError
from miga_bench.harness.request import PromptAt
from miga_bench.harness.scorers import SuiteScores, WorldScores, narrowed


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


@pytest.mark.parametrize("suite", ["tiny", "vbench-long"])
def test_one_set_of_scores_serves_all_videos_and_none_of_before_counts(
    tmp_path, monkeypatch, suite
):
    """Breaks if networks lie in memory twice, or if a video's scores are those of two videos."""
    backbone: Any = SimpleNamespace(device="cpu")

    def made():
        scorer = SuiteScores(suite, ["temporal_flickering", "motion_smoothness"], networks="tiny")
        scorer.use(backbone)
        return scorer

    videos = [write(tmp_path / f"{n}.mp4", torch.rand(20 + n, 3, 16, 16)) for n in range(2)]
    videos.append(write(tmp_path / "short.mp4", torch.rand(1, 3, 16, 16)))
    items = [item_of([PromptAt("a")], frames) for frames in (20, 21, 1)]
    alone = [made().score(*one) for one in list(zip(videos, items, strict=True))[:2]]
    scorer = made()
    for module in ("miga_bench.metrics.suites", "miga_bench.harness.score"):
        monkeypatch.setattr(f"{module}.make_scores", lambda *_: pytest.fail("makes another set"))
    (own,) = narrowed([scorer], ["temporal_flickering"])
    for n in (0, 1, 0):
        assert scorer.score(videos[n], items[n]) == alone[n]
        flicker = own.score(videos[n], items[n]).scores["temporal_flickering"]
        assert flicker == alone[n].scores["temporal_flickering"]
        with suppress(UserError):  # by clips it cannot be scored at all
            scorer.score(videos[2], items[2])
