"""Metrics of torchmetrics as scores of runs: what they are shown, and what they are asked."""

import json

import pytest
import torch
from run_workers import configuration
from test_scorers import item_of, write
from torchmetrics import Metric
from torchmetrics.image import StructuralSimilarityIndexMeasure, TotalVariation

from miga_bench.cli import main
from miga_bench.errors import UserError
from miga_bench.harness.frame_scores import FrameScores
from miga_bench.harness.request import PromptAt
from miga_bench.harness.results import read_results

CLIP = (torch.rand(70, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()
ITEM = item_of([PromptAt("one"), PromptAt("two!", 40)], 70)


class Words(Metric):
    """Means the length of the texts, and remembers how frames come."""

    higher_is_better = False
    seen = []  # noqa: RUF012 - of all instances

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, frames, texts=None):
        self.seen.append((frames.dtype, tuple(frames.shape), texts))
        self.total += sum(map(len, texts)) if texts else 0
        self.count += len(frames)

    def compute(self):
        return self.weight * self.total / self.count


class Pairs(Metric):
    """Computes two numbers."""

    def update(self, frames):
        pass

    def compute(self):
        return torch.zeros(2)


@pytest.fixture
def video(tmp_path):
    return write(tmp_path / "a.mp4", CLIP)


def test_a_metric_over_frames_is_that_of_all_frames(video):
    scorer = FrameScores("torchmetrics.image.TotalVariation", {"reduction": "mean"})
    expected = TotalVariation(reduction="mean")
    expected.update(CLIP.float() / 255)
    for _ in range(2):  # nothing is left of the video before
        found = scorer.score(video, ITEM)
        assert found.scores == pytest.approx({"metric/TotalVariation": float(expected.compute())})
    told = scorer.told()["metric/TotalVariation"]
    assert (told.better, told.meaning) == ("lower", "TotalVariation of frames")


def test_neighbors_are_each_frame_and_the_one_before(video, tmp_path):
    path = "torchmetrics.image.StructuralSimilarityIndexMeasure"
    scorer = FrameScores(path, {"data_range": 1.0}, shown="neighbors", label="ssim")
    expected = StructuralSimilarityIndexMeasure(data_range=1.0)
    frames = CLIP.float() / 255
    expected.update(frames[1:], frames[:-1])
    assert scorer.score(video, ITEM).scores == pytest.approx(
        {"metric/ssim": float(expected.compute())}, rel=1e-5
    )
    single = scorer.score(write(tmp_path / "b.mp4", CLIP[:1]), ITEM)
    assert single.scores == {"metric/ssim": None}
    assert single.reasons == {"metric/ssim": "a single frame has no neighbor"}


def test_texts_are_the_prompts_of_the_frames(video):
    Words.seen.clear()
    scorer = FrameScores("test_frame_scores.Words", {"weight": 2.0}, shown="texts", floats=False)
    found = scorer.score(video, ITEM)
    assert found.scores["metric/Words"] == pytest.approx(2 * (40 * 3 + 30 * 4) / 70)
    texts = [text for _, _, more in Words.seen for text in more]
    assert texts == ["one"] * 40 + ["two!"] * 30
    assert {kind for kind, _, _ in Words.seen} == {torch.uint8}
    assert scorer.told()["metric/Words"].better == "lower"


def test_whatever_decides_the_number_is_part_of_the_file():
    made = [
        FrameScores("test_frame_scores.Words"),
        FrameScores("test_frame_scores.Words", {"weight": 2.0}),
        FrameScores("test_frame_scores.Words", shown="texts"),
        FrameScores("test_frame_scores.Words", floats=False),
        FrameScores("test_frame_scores.Words", label="other"),
        FrameScores("torchmetrics.image.TotalVariation"),
    ]
    assert len({scorer.file for scorer in made}) == len(made)
    assert made[-1].identity()["version"]


def test_an_edited_metric_scores_anew(tmp_path, monkeypatch):
    """Breaks if one table has numbers of a metric of one's own before and after it was edited."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # of two edits within a second
    code = "from test_frame_scores import Words\n\nclass Mine(Words):\n    pass\n"
    files = []
    for text in (code, code, code + "# new\n"):
        (tmp_path / "own_metric.py").write_text(text)
        monkeypatch.delitem("sys.modules", "own_metric", raising=False)
        files.append(FrameScores("own_metric.Mine").file)
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"metric": "torchmetrics.image.Nothing"}, "cannot be had"),
        ({"metric": "nowhere.Metric"}, "cannot be had"),
        ({"metric": "Metric"}, "cannot be had"),
        ({"metric": "torch.nn.Linear"}, "is no torchmetrics.Metric"),
        ({"metric": "test_frame_scores.Words", "options": {"wait": 1}}, "cannot be made"),
        ({"metric": "test_frame_scores.Words", "label": "a b"}, "make a label"),
    ],
)
def test_wrong_metrics_are_refused_when_they_are_named(arguments, rule):
    with pytest.raises(UserError, match=rule):
        FrameScores(**arguments)


def test_one_number_is_wanted(video):
    with pytest.raises(UserError, match="more than one number"):
        FrameScores("test_frame_scores.Pairs").score(video, ITEM)


def test_a_run_has_the_metric_beside_the_others(tmp_path, capsys):
    scorer = {"class_path": "FrameScores", "init_args": {"metric": "test_frame_scores.Words"}}
    path = configuration(
        tmp_path, model__metrics=[scorer], data__seeds=[0], data__limit=1, model__arms=None
    )
    assert main(["predict", "--config", str(path)]) == 0
    capsys.readouterr()
    folder = tmp_path / "run"
    results = read_results(folder)
    assert all(row.scores["metric/Words"] == 0 for row in results.rows)
    assert results.told["metric/Words"].better == "lower"
    assert main(["report", str(folder), "-o", str(tmp_path / "out"), "--prompts-shown", "0"]) == 0
    json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "Words of frames" in (tmp_path / "out" / "report.md").read_text()
