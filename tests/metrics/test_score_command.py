"""``miga-bench score``: anybody's videos in, one document out, nothing scored twice."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import av
import pytest
import torch
from PIL import Image

import miga_bench.harness.score
from miga_bench.cli import main
from miga_bench.errors import Notice, UserError
from miga_bench.harness.score import _head, score, score_video
from miga_bench.harness.score_narrlv import FileVideo
from miga_bench.harness.score_request import Plan, ScoreRequest
from miga_bench.harness.score_sources import TruncatedError, find_videos, with_prompts
from miga_bench.media import VideoWriter, read_video
from miga_bench.metrics import TemporalFlickering
from miga_bench.metrics.base import VideoScore
from miga_bench.metrics.networks.base import Provenance
from miga_bench.metrics.networks.viclip import VideoTextEncoder
from miga_bench.metrics.suites import OVERALL, make_scores


def moving(frames=12, speed=1, size=64):
    """A bright square that moves over a gray field."""
    video = torch.full((frames, 3, size, size), 90, dtype=torch.uint8)
    for t in range(frames):
        video[t, 0, 20:36, (10 + speed * t) % (size - 16) : (10 + speed * t) % (size - 16) + 16] = (
            220
        )
    return video


def write(path: Path, video, rate=8):
    with VideoWriter(path, rate, lossless=True) as writer:
        writer.push(video)
    return path


@pytest.fixture
def folder(tmp_path):
    for name, speed in (("slow.mp4", 1), ("fast.mp4", 3), ("deep/er.mp4", 2)):
        write(tmp_path / "videos" / name, moving(speed=speed))
    return tmp_path / "videos"


def request(folder, **changes):
    return ScoreRequest([folder], output=folder.parent / "scores.json", **changes)


def test_scores_asked_for_on_apples_gpu_run_on_the_cpu(folder, monkeypatch):
    """It has no float64, in which they are summed."""
    monkeypatch.setattr("miga_bench.backbones.residence.pick_device", torch.device)
    asked = request(folder, devices=("mps",), dimensions=["temporal_flickering"])
    with pytest.warns(Notice, match="scores run on the CPU"):
        document = score(asked)
    assert document["hardware"]["device"] == "cpu"
    assert all(video["reason"] is None for video in document["videos"])


def test_a_folder_is_scored(folder):
    document = score(request(folder))
    names = [video["video"] for video in document["videos"]]
    assert names == ["deep/er.mp4", "fast.mp4", "slow.mp4"]
    flicker = document["scores"]["temporal_flickering"]
    direct = TemporalFlickering()
    for name in names:
        direct.update(torch.stack(list(read_video(folder / name))))
    assert flicker["mean"] == direct.compute().item()
    assert flicker["low"] < flicker["mean"] < flicker["high"]
    assert "subject_consistency[tiny]" in document["scores"]
    assert "subject_consistency" not in document["scores"]
    four = [
        document["scores"][name]["mean"]
        for name in document["scores"]
        if name.partition("[")[0] in OVERALL
    ]
    overall = next(name for name in document["scores"] if name.startswith("overall_score["))
    assert document["scores"][overall]["mean"] == pytest.approx(sum(four) / 4)
    assert document["scores"]["subject_consistency[tiny]"]["networks"]["encoder"]["sha256"]
    assert json.loads((folder.parent / "scores.json").read_text())["scores"] == document["scores"]
    assert Image.open(folder.parent / "scores.png").size[0] > 300
    assert not (folder.parent / "scores.jsonl").exists()


def test_a_video_without_any_score_is_said_and_counted(folder, capsys):
    """Breaks if a picture passes as a scored video, or two videos get an interval wider than the scores."""
    (folder / "deep" / "er.mp4").unlink()
    write(folder / "one.mp4", moving(1))
    output, options = folder.parent / "a.json", ["--dimension", "temporal_flickering", "--force"]
    assert main(["score", str(folder), "-o", str(output), *options]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])["scores"]["temporal_flickering"]
    assert (found["n"], found["dropped"], found["videos"]) == (2, 1, 3)
    assert "miga-bench: one.mp4 has no score: " in err
    assert "95 % interval" in err
    assert " to " not in err
    (folder / "one.mp4").unlink()
    write(folder / "third.mp4", moving(speed=4))
    assert main(["score", str(folder), "-o", str(output), *options]) == 0
    assert " to " in capsys.readouterr().err


def test_several_processes_give_the_same(folder):
    only = {"dimensions": ["temporal_flickering", "subject_consistency"]}
    alone = score(request(folder, **only))
    together = score(request(folder, devices=["cpu", "cpu"], overwrite=True, **only))
    assert together["scores"] == alone["scores"]
    assert together["videos"] == alone["videos"]


def test_vbench_long_on_embedded_networks(folder):
    write(folder / "long.mp4", moving(39))
    document = score(request(folder, suite="vbench-long", networks="tiny"))
    by_name = {video["video"]: video for video in document["videos"]}
    assert document["reading"] == "exact"
    assert set(document["scores"]) == set(by_name["long.mp4"]["scores"])
    # the mean over videos, however many clips each has
    flicker = [video["scores"]["temporal_flickering"] for video in document["videos"]]
    assert document["scores"]["temporal_flickering"]["mean"] == pytest.approx(sum(flicker) / 4)
    other = score(
        request(folder, suite="vbench-long", networks="tiny", overwrite=True, reading="reference")
    )
    # three clips of long.mp4 and one of each other
    assert other["scores"]["temporal_flickering"]["mean"] != pytest.approx(sum(flicker) / 4)
    assert other["scores"]["temporal_flickering"]["aggregate"] == "clip"
    # a mean over clips has no interval, and a mean of such means has none either
    for found, whole in ((document, True), (other, False)):
        overall = found["scores"]["overall_score[tiny,dis]"]
        assert (overall["low"] is not None) is whole
        assert (overall["reason"] is None) is whole


class Agrees(VideoTextEncoder):
    """Finds every clip a half agreeing with its text."""

    label = "agrees"
    provenance = Provenance("agrees", "none", None)
    texts: ClassVar[list[str]] = []

    def embed_video(self, frames):
        return torch.tensor([0.0, 1.0])

    def embed_text(self, text):
        self.texts.append(text)
        return torch.tensor([math.sqrt(0.75), 0.5])


def test_every_clip_of_a_long_video_is_held_against_the_videos_prompt(folder, monkeypatch):
    monkeypatch.setattr("miga_bench.metrics.suites.public_network", lambda *_: Agrees())
    Agrees.texts.clear()
    video = write(folder / "long.mp4", moving(39))
    prompts = folder.parent / "prompts.json"
    prompts.write_text('{"long": "a square moves"}')
    names = ["overall_consistency", "temporal_flickering"]
    document = score(request(video, suite="vbench-long", dimensions=names, prompts=prompts))
    (found,) = document["videos"]
    assert (found["reason"], Agrees.texts) == (None, ["a square moves"] * 3)
    assert found["scores"]["overall_consistency[agrees]"] == pytest.approx(0.5)
    assert found["scores"]["temporal_flickering"] > 0.9


@pytest.mark.parametrize("suite", ["vbench", "vbench-long"])
def test_a_video_whose_text_changes_agrees_with_no_single_text(folder, monkeypatch, suite):
    """Breaks if a network that reads 32 tokens holds the second half of a video against the first text."""
    monkeypatch.setattr("miga_bench.metrics.suites.public_network", lambda *_: Agrees())
    write(folder / "one.mp4", moving(39))
    write(folder / "two.mp4", moving(39))
    prompts = folder.parent / "prompts.json"
    prompts.write_text('{"one": ["a square moves"], "two": ["a square moves", "a star"]}')
    names = ["overall_consistency", "temporal_flickering"]
    asked = request(folder, suite=suite, dimensions=names, prompts=prompts)
    asked.videos[:] = [folder / "one.mp4", folder / "two.mp4"]
    one, two = score(asked)["videos"]
    assert one["scores"]["overall_consistency[agrees]"] == pytest.approx(0.5)
    assert two["scores"]["overall_consistency[agrees]"] is None
    assert "text changes" in two["reason"]["overall_consistency"]
    assert one["scores"]["temporal_flickering"] == two["scores"]["temporal_flickering"]


class Placed(VideoScore):
    """Notes the frames it is shown."""

    def __init__(self, name):
        self.name = name
        self.shown = []
        super().__init__()

    def _terms(self, frames):
        self.shown.append(frames)
        return torch.ones(len(frames))

    def _forget(self):
        pass


@pytest.mark.parametrize("long", [False, True])
def test_frames_are_scored_where_the_networks_are_and_are_one_tensor_for_all(folder, long):
    names = ("temporal_flickering", "motion_smoothness")
    scores = [Placed(name) for name in names]
    row = score_video(find_videos([folder])[0], Plan(long, "tiny", names), "meta", scores)
    assert (row["frames"], row["reason"]) == (12, None)
    first, second = (one.shown for one in scores)
    assert {frames.device.type for frames in first} == {"meta"}
    # encoders that are shared run once
    assert all(a is b for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("suite", ["tiny", "vbench-long"])
def test_a_gpu_gives_the_same_scores(folder, suite):
    write(folder / "long.mp4", moving(39))
    alone = score(request(folder, suite=suite, networks="tiny"))
    other = score(request(folder, suite=suite, networks="tiny", overwrite=True, devices=["cuda"]))
    for name, found in alone["scores"].items():
        assert other["scores"][name]["mean"] == pytest.approx(found["mean"], abs=1e-4), name


def test_a_killed_command_goes_on(folder):
    for k in range(4):
        write(folder / f"more{k}.mp4", moving(200, speed=k))
    output = folder.parent / "scores.json"
    command = [sys.executable, "-m", "miga_bench", "score", str(folder), "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    journal = output.with_suffix(".jsonl")
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_text().count("\n") >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_text().count('"key"')
    assert kept >= 2
    journal.write_text(journal.read_text() + '{"key": "broken')  # as a kill may leave it
    seen = {}

    def look(done, total, name):
        if name:
            seen[name] = [json.loads(line) for line in journal.read_text().splitlines()]

    resumed = score(request(folder), look)
    assert [len(lines) for lines in seen.values()] == list(range(kept + 2, 9))
    fresh = score(request(folder, overwrite=True))
    assert resumed["scores"] == fresh["scores"]


def test_a_missing_folder_is_made(tmp_path):
    videos = write(tmp_path / "ok.mp4", moving(4))
    output = tmp_path / "new" / "deep" / "scores.json"
    only = ["--dimension", "temporal_flickering", "--quiet"]
    assert main(["score", str(tmp_path / "none.mp4"), "-o", str(output), *only]) == 2
    assert not output.parent.parent.exists()
    assert main(["score", str(videos), "-o", str(output), *only]) == 0
    assert sorted(p.name for p in output.parent.iterdir()) == ["scores.json", "scores.png"]


def test_a_picture_of_something_else_needs_force(folder, capsys):
    output, sheet = folder.parent / "scores.json", folder.parent / "scores.png"
    sheet.write_text("mine")
    only = ["--dimension", "temporal_flickering", "--quiet"]
    assert main(["score", str(folder), "-o", str(output), *only]) == 2
    assert f"{sheet} exists: add --force" in capsys.readouterr().err
    assert (sheet.read_text(), output.exists()) == ("mine", False)
    assert main(["score", str(folder), "-o", str(output), *only, "--force"]) == 0
    # stopped between the picture and the scores: the same command goes on
    output.unlink()
    plan = ScoreRequest([folder], dimensions=["temporal_flickering"], output=output).plan
    head = _head(plan, make_scores(plan.dimensions), {})
    output.with_suffix(".jsonl").write_text(json.dumps(head) + "\n")
    assert main(["score", str(folder), "-o", str(output), *only]) == 0


def test_pictures_and_gifs_are_videos(tmp_path):
    frames = moving(5)
    sequence = tmp_path / "videos" / "shots"
    sequence.mkdir(parents=True)
    pictures = [Image.fromarray(f.permute(1, 2, 0).numpy()) for f in frames]
    for k, picture in enumerate(pictures):
        picture.save(sequence / f"frame_{k + 6}.png")  # 10 comes after 9
    pictures[0].save(
        tmp_path / "videos" / "loop.gif", save_all=True, append_images=pictures[1:], duration=125
    )
    loop, shots = find_videos([tmp_path / "videos"], fps=8)
    assert (loop.name, shots.name) == ("loop.gif", "shots")
    assert torch.equal(torch.cat(list(shots.pieces())), frames)
    assert sum(len(piece) for piece in loop.pieces()) == 5


def test_prompts_come_from_a_file_or_from_records(folder):
    (folder / "slow.json").write_text('{"prompts": [{"text": "a square moves"}]}')
    assert [s.prompt for s in with_prompts(find_videos([folder]), None)] == [
        None,
        None,
        "a square moves",
    ]
    table = folder.parent / "prompts.jsonl"
    table.write_text(
        '{"video": "fast", "prompt": "quick"}\n{"video": "slow.mp4", "prompt": "slow"}'
    )
    assert [s.prompt for s in with_prompts(find_videos([folder]), table)] == [None, "quick", "slow"]


def test_a_runs_prompts_serve_one_arm_one_video_and_a_run_that_is_not_whole(tmp_path, monkeypatch):
    run = tmp_path / "run"
    for name in ("short/p1.mp4", "wide/p1.mp4"):
        write(run / "videos" / name, moving(2))
    prompts = {"short/p1.mp4": "a", "wide/p1.mp4": "a / b", "wide/p2.mp4": "c"}
    (run / "prompts.json").write_text(json.dumps(prompts))

    def told(others, *videos):
        with pytest.warns(Notice, match=f"{others} of the 3 names"):
            return [s.prompt for s in with_prompts(find_videos(videos), run / "prompts.json")]

    assert told(1, run / "videos") == ["a", "a / b"]
    assert told(2, run / "videos" / "wide") == ["a / b"]
    assert told(2, run / "videos" / "short" / "p1.mp4") == ["a"]
    monkeypatch.chdir(run / "videos" / "wide")
    assert told(2, Path("p1.mp4")) == ["a / b"]
    # copied elsewhere it may be either
    assert told(2, write(tmp_path / "p2.mp4", moving(2))) == ["c"]
    with pytest.raises(UserError, match=r"several prompts that may be meant for p1\.mp4"):
        told(1, write(tmp_path / "p1.mp4", moving(2)))


def write_with_index_first(path, video):
    """An mp4 as cameras and ffmpeg write it: it says at its start how long it is."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = video.shape[2], video.shape[3], "yuv420p"
        for frame in video:
            picture = av.VideoFrame.from_ndarray(
                frame.permute(1, 2, 0).contiguous().numpy(), "rgb24"
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def trim(path, frames):
    """Hide a file's first frames as ``ffmpeg -ss TIME -c copy`` does; return the file without them."""
    trimmed = path.with_name(f"trimmed_{path.name}")
    options = {"movflags": "faststart"}
    with av.open(str(path)) as before, av.open(str(trimmed), "w", options=options) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                shift = round(frames / 8 / packet.time_base)
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - shift,
                    packet.dts - shift,
                    stream,
                )
                after.mux(packet)
    return trimmed


def test_a_trimmed_video_is_whole_and_a_broken_one_of_these_is_not(tmp_path):
    write_with_index_first(tmp_path / "a.mp4", torch.rand(40, 3, 64, 64).mul(255).byte())
    path = trim(tmp_path / "a.mp4", 7)
    (source,) = find_videos([path])
    assert source.frames == 40
    assert sum(map(len, source.pieces())) == 33
    story = FileVideo(path)
    assert len(story) == 33
    assert story.pick([0, 32]).shape == (2, 3, 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(TruncatedError):
        list(find_videos([path])[0].pieces())


def test_a_broken_video_does_not_stop_the_rest(folder, capsys):
    broken, output = folder / "broken.mp4", folder.parent / "scores.json"
    noise = torch.randint(0, 256, (60, 3, 64, 64), dtype=torch.uint8)
    write_with_index_first(broken, noise)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    write(folder / "single.mp4", moving(1))
    assert main(["score", str(folder), "-o", str(output)]) == 1
    document = json.loads(output.read_text())
    by_name = {video["video"]: video for video in document["videos"]}
    assert re.search(r"after \d+ (of 60 )?frames", by_name["broken.mp4"]["reason"])
    assert not any(by_name["broken.mp4"]["scores"].values())
    single = by_name["single.mp4"]
    assert single["scores"]["temporal_flickering"] is None
    assert "at least 2" in single["reason"]["temporal_flickering"]
    assert document["scores"]["temporal_flickering"]["n"] == 3
    assert document["scores"]["temporal_flickering"]["videos"] == 5
    error = capsys.readouterr().err
    assert "broken.mp4" in error
    assert "Traceback" not in error


def test_one_odd_video_does_not_stop_the_rest_and_what_may_fare_better_is_tried_again(
    folder, monkeypatch
):
    shots = folder / "shots"
    shots.mkdir()
    for k, size in enumerate((32, 32, 40)):
        Image.new("RGB", (size, 32)).save(shots / f"{k}.png")
    whole, scored = miga_bench.harness.score._whole, []

    def full(source, *others):
        scored.append(source.name)
        if source.name == "fast.mp4" and scored.count("fast.mp4") == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried it all")
        return whole(source, *others)

    monkeypatch.setattr(miga_bench.harness.score, "_whole", full)
    only = {"dimensions": ["temporal_flickering"]}
    videos = {video["video"]: video for video in score(request(folder, **only))["videos"]}
    assert videos["shots"]["reason"] == (
        "shots has frames of 32x32 pixels, and after 2 one of 40x32"
    )
    assert videos["fast.mp4"]["reason"] == (
        "fast.mp4 cannot be scored: CUDA out of memory. Tried it all"
    )
    assert all(
        videos[name]["scores"]["temporal_flickering"] for name in ("slow.mp4", "deep/er.mp4")
    )
    scored.clear()
    scored.append("fast.mp4")
    document = score(request(folder, overwrite=True, **only))
    assert scored == ["fast.mp4", "fast.mp4"]
    assert document["scores"]["temporal_flickering"]["n"] == 3
    assert not (folder.parent / "scores.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["."], "no videos in"),
        (["note.txt"], "is no video"),
        (["empty.mp4"], "cannot be read as a video"),
        (["ok.mp4", "--suite", "vbnch"], "unknown suite"),
        (["ok.mp4", "--dimension", "subject"], "did you mean subject_consistency"),
        (["ok.mp4", "--dimension", "aesthetic_quality"], "has no embedded network"),
        (["ok.mp4", "--prompts", "note.txt"], "must be a JSON object"),
        (["ok.mp4", "--prompts", "other.json"], "not among the videos"),
        (["ok.mp4", "other.mp4"], "of one frame rate"),
        (["ok.mp4", "--fps", "0"], "--fps 0"),
        (["ok.mp4", "--suite", "vbench", "--networks", "vbnch"], "unknown networks"),
        (["ok.mp4", "--suite", "vbench-long", "--aggregate", "clip"], "not for vbench-long"),
        (["ok.mp4", "--reading", "reference"], "are for --suite vbench-long"),
        (["ok.mp4", "--tna", "3"], "--tna is for --suite narrlv, not tiny"),
        (["ok.mp4", "--narratives", "tiny"], "--narratives is for --suite narrlv, not tiny"),
        (
            ["ok.mp4", "--suite", "vbench", "--partial"],
            "--partial is for --suite narrlv, not vbench",
        ),
        (["ok.mp4", "-o", "scores.txt"], "end its name in .json"),
        (["ok.mp4", "-o", "there.json"], "exists: add --force"),
        (["ok.mp4", "--device", "cuda:99"], "device cuda:99 is not there"),
        (["ok.mp4", "--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = ["empty" if a == "." else a for a in arguments]
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "other.json").write_text('{"ok2.mp4": "a prompt"}')
    (tmp_path / "there.json").write_text("{}")
    write(tmp_path / "ok.mp4", moving(4))
    write(tmp_path / "other.mp4", moving(4), rate=12)
    assert main(["score", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "scores.json").exists()
    assert not (tmp_path / "scores.jsonl").exists()


def test_overall_consistency_needs_prompts(folder):
    with pytest.raises(UserError, match="needs the prompt of every video, 3 have none"):
        score(request(folder, suite="vbench", dimensions=["overall_consistency"]))
