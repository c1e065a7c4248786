"""VBench-Long's scores of a video of a run, clip by clip."""

import pytest
import torch
from test_scorers import item_of, write

from miga_bench.harness.request import PromptAt
from miga_bench.harness.scorers import SuiteScores


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
