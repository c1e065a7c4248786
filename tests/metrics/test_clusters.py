"""Intervals of ``miga-bench score`` over prompts, also where only the names of the videos tell them."""

import json

import pytest
from test_score_command import moving, request, write

from miga_bench.cli import main
from miga_bench.harness.clusters import clusters
from miga_bench.harness.score import score
from miga_bench.harness.score_summary import table
from miga_bench.metrics.statistics import estimate


@pytest.mark.parametrize(
    ("names", "prompts", "found", "by"),
    [
        (["a cat-0.mp4", "a cat-1.mp4", "a dog-0.mp4", "a dog-1.mp4"], None, [0, 0, 2, 2], "name"),
        (["v1.5-0", "v1.5-1", "v2-0", "v2-10"], None, [0, 0, 2, 2], "name"),
        (
            ["a cat-0.mp4", "a cat-1.mp4", "a dog-0.mp4", "a dog-1.mp4", "b.mp4"],
            None,
            None,
            "video",
        ),
        (["sample-0.mp4", "sample-1.mp4", "sample-2.mp4"], None, [0, 1, 2], "video"),
        (["a-000.mp4", "a-001.mp4", "b-000.mp4", "b-001.mp4"], None, [0, 1, 2, 3], "video"),
        (["x/a-0.mp4", "x/a-1.mp4", "y/a-0.mp4", "y/a-1.mp4"], None, [0, 0, 2, 2], "name"),
        (["a-0.mp4", "a-1.mp4", "b-0.mp4", "b-1.mp4"], [*"xyzx"], [0, 1, 2, 0], "prompt"),
    ],
)
def test_what_a_video_belongs_to(names, prompts, found, by):
    """Breaks if a number that is no seed, as of sample-0 to sample-99, makes one prompt of all."""
    got, way = clusters(names, prompts or [None] * len(names))
    expected = [0, 0, 2, 2, 4] if found is None else found
    assert [got.index(one) for one in got] == expected
    assert way == by


def test_videos_named_as_vbenchs_are_scored_over_prompts_and_that_is_said(tmp_path, capsys):
    """Breaks if three videos of a prompt pass for three prompts, or the table does not say what it is over."""
    for k in range(3):
        for n in range(3):
            write(tmp_path / "videos" / f"text {k}-{n}.mp4", moving(6, speed=1 + 2 * k + n))
    only = {"dimensions": ["temporal_flickering"]}
    document = score(request(tmp_path / "videos", **only))
    (found,) = document["scores"].values()
    values = [video["scores"]["temporal_flickering"] for video in document["videos"]]
    expected = estimate(values, [video["video"][:6] for video in document["videos"]])
    assert (found["n"], found["clusters"]) == (9, 3)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert document["clustered_by"] == "name"
    assert "intervals over prompts, by the names of the videos" in table(document).title
    alone = write(tmp_path / "alone.mp4", moving(6))
    options = ["-o", str(tmp_path / "b.json"), "--dimension", "temporal_flickering"]
    assert main(["score", str(alone), *options]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["clustered_by"] == "video"
    assert "intervals over videos" in err


def test_the_table_prints_no_share_above_100():
    """Breaks if 5 of 6 videos that move are 83.33 % with an interval to 126 %."""
    found = {"mean": 5 / 6, "low": 0.4, "high": 1.26, "clusters": 6}
    document = {"suite": "vbench", "clustered_by": "video", "videos": [], "scores": {}}
    document["scores"] = {"dynamic_degree[raft]": found, "overall_consistency[clip]": found}
    shown = table(document)
    assert [list(column.cells)[-1] for column in shown.columns[1:]] == [
        "40.00 to 100.00",
        "40.00 to 126.00",
    ]
