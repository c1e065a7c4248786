"""From videos' values to the document: what is no number stays none, and says why."""

import json
import math

import pytest
import torch
from test_video_scores import Average, Choosy

from miga_bench.cli import main
from miga_bench.harness.score_request import Plan
from miga_bench.harness.score_summary import summary, unscored, without_some
from miga_bench.media import VideoWriter
from miga_bench.metrics import MotionSmoothness, SubjectConsistency, TemporalFlickering

NAMES = ("motion_smoothness", "temporal_flickering")


def row(video, **scores):
    return {"video": video, "prompt": None, "frames": 9, "reason": None, "scores": scores}


def whole(value):
    return {"value": value, "terms": [8 * (255 - 255 * value), 8], "series": [[0, 7, value]]}


def clips(*found, fast=None, **more):
    return {"clips": found, "length": 16, "fast": fast, "series": [], **more}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_dropped_with_a_reason(value):
    """Breaks if one network's NaN makes the mean NaN, and the document no JSON."""
    rows = [
        row(name, motion_smoothness=whole(motion), temporal_flickering=whole(0.75))
        for name, motion in (("a.mp4", 0.5), ("b.mp4", value))
    ]
    scores = [MotionSmoothness(Average()), TemporalFlickering()]
    document = summary(rows, Plan(False, "vbench", NAMES), scores)
    json.dumps(document, allow_nan=False)
    found = document["scores"]["motion_smoothness[average]"]
    assert (found["mean"], found["n"], found["dropped"], found["videos"]) == (0.5, 1, 1, 2)
    assert document["scores"]["temporal_flickering"]["n"] == 2
    lost = document["videos"][1]
    assert lost["scores"] == {"motion_smoothness[average]": None, "temporal_flickering": 0.75}
    assert lost["reason"] == {"motion_smoothness": "NaN or infinity came of it"}
    assert without_some(document) == ["b.mp4: no motion_smoothness: NaN or infinity came of it"]
    assert unscored(document) == []


@pytest.mark.parametrize("reading", ["exact", "reference"])
def test_long_videos_without_a_score_are_dropped_with_a_reason(reading):
    rows = [
        row("a.mp4", subject_consistency=clips(0.5, 0.7, fast=0.8)),
        row("b.mp4", subject_consistency=clips(0.5, math.nan, fast=0.8)),
        row("c.mp4", subject_consistency=clips(0.5, 0.7, fast=math.nan)),
        row("d.mp4", subject_consistency=clips(reason="subject_consistency: too small")),
    ]
    plan = Plan(True, "tiny", ("subject_consistency",))
    document = summary(rows, plan, [SubjectConsistency()], reading)
    json.dumps(document, allow_nan=False)
    alone = summary(rows[:1], plan, [SubjectConsistency()], reading)
    found = document["scores"]["subject_consistency[tiny]"]
    assert found["mean"] == alone["scores"]["subject_consistency[tiny]"]["mean"] > 0.5
    assert (found["n"], found["dropped"], found["videos"]) == (1, 3, 4)
    assert [line.partition(" has")[0] for line in unscored(document)] == ["b.mp4", "c.mp4", "d.mp4"]
    none = summary(rows[3:], plan, [SubjectConsistency()], reading)
    assert none["scores"]["subject_consistency[tiny]"]["mean"] is None


def test_videos_of_one_name_in_two_folders_keep_their_own_fast_scores():
    rows = [
        row(f"{name}/a.mp4", subject_consistency=clips(0.5, 0.5, fast=fast))
        for name, fast in (("old_er", 0.7), ("new_er", 0.9))
    ]
    plan = Plan(True, "tiny", ("subject_consistency",))
    exact, reference = (
        summary(rows, plan, [SubjectConsistency()], reading) for reading in ("exact", "reference")
    )
    assert reference["videos"] == exact["videos"]
    first, second = (video["scores"]["subject_consistency[tiny]"] for video in exact["videos"])
    assert first < second


@pytest.mark.parametrize("suite", ["vbench", "vbench-long"])
def test_videos_too_small_for_a_network_get_a_line_and_their_other_scores(
    tmp_path, monkeypatch, capsys, suite
):
    """Breaks if the embedded worlds' videos get a number of AMT-S that is their brightness, or none of any."""
    monkeypatch.setattr("miga_bench.metrics.suites.public_network", lambda *_: Choosy())
    for name in ("a.mp4", "b.mp4"):
        with VideoWriter(tmp_path / name, 8) as writer:
            writer.push(torch.full((9, 3, 16, 16), 90, dtype=torch.uint8))
    options = [part for name in NAMES for part in ("--dimension", name)]
    output = ["-o", str(tmp_path / "scores.json"), "--suite", suite, "--quiet"]
    assert main(["score", str(tmp_path), *output, *options]) == 0
    printed, said = capsys.readouterr()
    (line,) = said.splitlines()
    assert line.endswith(
        "2 videos: no motion_smoothness[choosy]: frames of 16x16 pixels are too small for Choosy-S, they must"
        " have 20 at least on both sides: leave this score out, or score larger videos"
    )
    found = json.loads(printed.splitlines()[-1])["scores"]
    assert (
        found["motion_smoothness[choosy]"]["mean"],
        found["motion_smoothness[choosy]"]["n"],
    ) == (None, 0)
    assert found["temporal_flickering"]["mean"] == 1
