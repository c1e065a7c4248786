"""``miga-bench score --suite narrlv``: videos on disk, the embedded world's judge, answers kept."""

import hashlib
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from narratives import parse_narrative, render_narrative

from miga_bench.cli import main
from miga_bench.errors import Notice, UserError
from miga_bench.harness.score_narrlv import FileVideo, NarrativeRequest, score_narratives
from miga_bench.harness.stories import StoryOptions
from miga_bench.media import VideoWriter
from miga_bench.metrics.narrlv import load_suite
from miga_bench.prompts import STORIES

CHOSEN = {"tna": [2], "factors": ["target_attribute"]}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The true videos of the suite's stories of two atoms about the target."""
    folder = tmp_path_factory.mktemp("stories")
    for item in load_suite(STORIES["tiny"]).select(CHOSEN["factors"], CHOSEN["tna"]).items:
        frames, _ = render_narrative(parse_narrative(item.prompt), random.Random(item.key), 64)
        with VideoWriter(item.video(folder), 16, quality=4) as writer:
            writer.push(frames)
    return folder


def test_true_videos_score_one(videos, tmp_path):
    request = NarrativeRequest(videos, output=tmp_path / "scores.json", **CHOSEN)
    document = score_narratives(request)
    assert document["scores"]["target_attribute"]["collapsed"] == pytest.approx(1.0)
    assert document["provenance"]["answers"] > 0
    assert json.loads(request.output.read_text())["cells"] == document["cells"]


def test_answers_are_asked_once(videos, tmp_path):
    output = tmp_path / "scores.json"
    counts = []
    request = NarrativeRequest(videos, output=output, **CHOSEN)
    score_narratives(request, lambda done, total, name: counts.append((done, total)))
    assert counts[-1][0] == counts[-1][1] == len(counts)
    lines = request.answers.read_text().splitlines(keepends=True)
    request.answers.write_text("".join(lines[:-3]) + '{"item": "bro')  # as a kill may leave it
    again = []
    resumed = NarrativeRequest(videos, output=output, overwrite=True, **CHOSEN)
    score_narratives(resumed, lambda done, total, name: again.append(done))
    assert len(again) == 3
    assert sorted(request.answers.read_text().splitlines()) == sorted("".join(lines).splitlines())


def test_another_videos_answers_are_not_counted(videos, tmp_path, capsys):
    """Breaks if the scores of a folder are those of the folder that was scored into the same file before."""
    other, output = tmp_path / "other", tmp_path / "scores.json"
    shutil.copytree(videos, other)
    black, kept = sorted(other.rglob("*.mp4"))[:2]
    with VideoWriter(black, 16, quality=4) as writer:
        writer.push(torch.zeros(64, 3, 64, 64, dtype=torch.uint8))
    capsys.readouterr()

    def scored(folder):
        command = ["score", str(folder), "--suite", "narrlv", "--tna", "2", "--partial", "--force"]
        assert main([*command, "--factor", "target_attribute", "-o", str(output)]) == 0
        one = json.loads(output.read_text())["scores"]["target_attribute"]
        return one["fid"], one["coh"], capsys.readouterr().err

    true = scored(videos)
    assert "asked anew" not in true[2]
    answers = output.with_suffix(".answers.jsonl")
    lines = answers.read_text().splitlines(keepends=True)
    about = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in (black, kept)}
    assert sum(about[kept] in line for line in lines) > 0
    mixed = scored(other)
    assert mixed[0] < true[0]
    more = answers.read_text().splitlines(keepends=True)[len(lines) :]
    assert more
    assert all(about[black] in line for line in more)
    anew = f"{answers} has {len(more)} answers about other videos than these: asked anew"
    assert mixed[2].count(anew) == 1
    # a kill between them: only the rest is asked, and both folders keep theirs
    answers.write_text("".join([*lines, *more[:-2]]))
    resumed = scored(other)
    assert resumed[:2] == mixed[:2]
    assert f"{answers} has 2 answers about other videos" in resumed[2]
    whole = answers.read_text()
    again = scored(videos)
    assert (again[:2], "asked anew" in again[2]) == (true[:2], False)
    assert answers.read_text() == whole


def test_answers_that_do_not_say_about_which_video_are_asked_anew(videos, tmp_path):
    output = tmp_path / "scores.json"
    request = NarrativeRequest(videos, output=output, **CHOSEN)
    score_narratives(request)
    header, *lines = map(json.loads, request.answers.read_text().splitlines())
    bare = [{name: v for name, v in line.items() if name != "video"} for line in lines]
    request.answers.write_text("".join(json.dumps(line) + "\n" for line in [header, *bare]))
    counts = []
    with pytest.warns(Notice, match=f"{len(lines)} answers about other videos"):
        score_narratives(replace(request, overwrite=True), lambda done, *_: counts.append(done))
    assert counts == list(range(1, len(lines) + 1))


def test_missing_videos_are_said(videos, tmp_path, capsys):
    output = tmp_path / "scores.json"
    command = ["score", str(videos), "--suite", "narrlv", "--tna", "2", "-o", str(output)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "videos are missing, the first is" in error
    assert "--partial" in error
    assert main([*command, "--partial"]) == 0
    document = json.loads(output.read_text())
    assert list(document["scores"]) == ["target_attribute"]
    assert len(document["missing"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--narratives", "natural"], "the reader judges stories of the embedded world"),
        (["--narratives", str(STORIES["natural"])], "stories of the embedded world"),
        (["--narratives", "release"], "the reader judges stories of the embedded world"),
        (["--quality", "none.jsonl", "--variant", "paper"], "paper has no term for it"),
        (["--judge", "http://127.0.0.1:9/v1"], "go together"),
        (["--judge-model", "some"], "go together"),
        (["--narratives", "nowhere"], "no narrative suite at nowhere"),
        (["--tna", "9"], "no items of factors"),
        (["--quality", "none.jsonl", "--tna", "2", "--partial"], "cannot read qualities"),
        (["--dimension", "flow"], "--dimension is not for --suite narrlv: leave it out"),
        (["--prompts", "nope.json"], "--prompts is not for --suite narrlv"),
        (["--networks", "foo"], "--networks is not for --suite narrlv"),
        (["--fps", "0"], "--fps is not for --suite narrlv"),
        (["--aggregate", "video"], "--aggregate is not for --suite narrlv"),
        (["--reading", "exact"], "--reading is not for --suite narrlv"),
        (["--in-clip-only"], "--in-clip-only is not for --suite narrlv"),
        (["--device", "cpu", "--device", "cpu"], "--device is given 2 times"),
        (["--device", "cuda:99"], "device is cuda:99: the judge reader runs on the CPU"),
        (["--device", "cuda:99", "--judge", "a/b"], "device cuda:99 is not there"),
        (["--device", "gpu", "--judge", "a/b"], "unknown device 'gpu'"),
    ],
)
def test_wrong_input_is_one_line(videos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(videos), "--suite", "narrlv", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variant": "papr"}, "variant is 'papr'; it must be one of code, paper"),
        ({"collapse": "max"}, "collapse is 'max'; it must be one of mean"),
        ({"votes": 0}, "votes is 0: each question is asked at least once"),
        ({"votes": 6}, "votes is 6"),
    ],
)
def test_what_only_python_can_give_is_refused_before_a_question(
    videos, tmp_path, monkeypatch, wrong, message
):
    """Breaks if an option is looked at first when the answers, which may have been paid for, are scored."""
    monkeypatch.setattr(StoryOptions, "open_judge", lambda self: pytest.fail("opens the judge"))
    request = NarrativeRequest(videos, StoryOptions(**wrong), output=tmp_path / "a.json", **CHOSEN)
    with pytest.raises(UserError, match=message):
        request.check()
    with pytest.raises(UserError, match=message):
        score_narratives(request)


def test_a_quality_is_given_of_every_video_or_of_none(videos, tmp_path, capsys):
    """Breaks if a number is a mean over scores with the term and scores without it."""
    keys = [
        item.key for item in load_suite(STORIES["tiny"]).select(["target_attribute"], [2]).items
    ]
    rated, output = tmp_path / "rated.json", tmp_path / "scores.json"
    command = ["score", str(videos), "--suite", "narrlv", "--tna", "2", "--partial"]
    command += ["-o", str(output), "--quality", str(rated)]
    rated.write_text(json.dumps(dict.fromkeys(keys[2:], 3)))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert (
        f"{rated} has no quality of {keys[0].strip()} and of 1 more: rate the first frame" in error
    )
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rated.json"]
    # those of videos that are not there may be in it
    lacking = load_suite(STORIES["tiny"]).select(["target_action"], [2]).items[0].key
    rated.write_text(json.dumps(dict.fromkeys([*keys, lacking], 3)))
    assert main(command) == 0
    document = json.loads(output.read_text())
    assert document["provenance"]["quality"] == "all"
    assert document["scores"]["target_attribute"]["cov"] == pytest.approx((1 + 0.6) / 2)


def test_a_files_frames_are_picked(videos):
    path = next(videos.rglob("*.mp4"))
    video = FileVideo(path)
    assert len(video) == 64
    picked = video.pick([63, 0, 0])
    assert picked.shape == (3, 3, 64, 64)
    assert picked[1].equal(picked[2])
    assert not picked[0].equal(picked[1])
