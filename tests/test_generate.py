"""One video end to end on a simple backbone: files, record, memory, and every way of ending."""

import dataclasses
import json
import os
import resource
import signal
import threading
import time
from unittest.mock import Mock

import pytest
import torch
from simple_backbone import SimpleBackbone, SimpleDecoder

from miga_bench import media
from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError
from miga_bench.harness import generate as page
from miga_bench.harness import video
from miga_bench.harness.generate import generate
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.harness.video import Watcher
from miga_bench.media import count_frames, read_video

SMALL = {
    "steps": "16",
    "zigzag": "2",
    "guidance_frames": "2",
    "stride": "3",
    "stage2_steps": "3",
    "renoise": "2",
    "reflection": "off",
}


def request(tmp_path, **changes):
    values = {"frames": 45, "overrides": SMALL} | changes
    prompts = values.pop("prompts", [PromptAt("a red circle")])
    return GenerateRequest(prompts=prompts, output=tmp_path / "out.mp4", **values)


def test_words_the_model_does_not_know_are_told(tmp_path):
    lines = []

    class Listener(Watcher):
        def noticed(self, line):
            lines.append(line)

    backbone = SimpleBackbone()
    generate(request(tmp_path, frames=5), Listener(), backbone)
    assert lines == []
    backbone.unknown_words = lambda prompts: ["dragon"]
    generate(request(tmp_path, frames=5, overwrite=True), Listener(), backbone)
    assert lines == ["tiny-simple does not know and passes over: dragon"]


def test_video_sheet_and_record(tmp_path):
    backbone = SimpleBackbone()
    result = generate(request(tmp_path, lossless=True), backbone=backbone)
    assert result.status == "done"
    assert count_frames(tmp_path / "out.mp4") == result.frames == 45
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.png"]
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["lossless"], record["offload"], record["dtype"]) == (True, False, None)
    assert record == json.loads(json.dumps(result.record))
    assert record["settings"]["zigzag"] == 2
    assert record["preset"] == "tiny"
    cost = record["cost"]
    assert cost["nfe"] == 2 * cost["windows"] > 0
    assert {"base", "growth", "stage1", "stage2", "decode", "write"} <= set(cost["seconds"])
    assert cost["total_seconds"] == pytest.approx(sum(cost["seconds"].values()), abs=0.05)


def test_the_sheet_names_the_backbone_that_made_the_video(tmp_path, monkeypatch):
    """Breaks if a sheet of a backbone object names the model that the request would have had by default."""
    titles, draw = [], video.contact_sheet

    def listened(rows, title):
        titles.append(title)
        return draw(rows, title=title)

    monkeypatch.setattr(video, "contact_sheet", listened)
    generate(request(tmp_path, frames=5), backbone=SimpleBackbone())
    assert titles == ["miga on tiny-simple, seed 0: a red circle"]


def test_the_interface_has_all_that_records_and_items_ask():
    """Breaks if a type checker would not know what is asked of every backbone."""
    asked = {"negative_prompt": "", "dtype": None, "weights_hash": None, "configuration_hash": None}
    assert {name: getattr(Backbone, name) for name in asked} == asked


def test_same_request_gives_the_same_bytes_and_another_seed_others(tmp_path):
    videos = []
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        generate(request(folder, seed=seed), backbone=SimpleBackbone())
        videos.append((folder / "out.mp4").read_bytes())
    assert videos[0] == videos[1] != videos[2]


def test_nfe_is_not_doubled_without_guidance(tmp_path):
    overrides = SMALL | {"guidance_scale": "1"}
    cost = generate(request(tmp_path, overrides=overrides), backbone=SimpleBackbone()).record[
        "cost"
    ]
    assert cost["nfe"] == cost["windows"]


@pytest.mark.parametrize("frames", [1, 2, 21, 44])
def test_exactly_the_frames_asked_for(tmp_path, frames):
    result = generate(request(tmp_path, frames=frames), backbone=SimpleBackbone())
    assert count_frames(tmp_path / "out.mp4") == result.frames == frames


def test_short_makes_its_clip_by_default_and_refuses_more(tmp_path):
    few = {"steps": "8"}
    result = generate(
        request(tmp_path, method="short", frames=None, overrides=few), backbone=SimpleBackbone()
    )
    assert result.frames == 21
    more = request(tmp_path, method="short", frames=22, overrides=few, overwrite=True)
    with pytest.raises(UserError, match="short makes at most"):
        generate(more, backbone=SimpleBackbone())


def test_a_later_prompt_takes_over_at_its_frame(tmp_path):
    plain = request(tmp_path, lossless=True)
    generate(plain, backbone=SimpleBackbone())
    one = torch.stack(list(read_video(tmp_path / "out.mp4"))).float()
    prompts = [PromptAt("a red circle"), PromptAt("a very long and other text", 25)]
    turned = dataclasses.replace(plain, prompts=prompts, overwrite=True)
    generate(turned, backbone=SimpleBackbone())
    two = torch.stack(list(read_video(tmp_path / "out.mp4"))).float()
    change = (one - two).abs().flatten(1).mean(1)
    assert change[:10].max() < 3
    assert change[-8:].min() > 10


def test_prompts_within_one_latent_are_refused(tmp_path):
    prompts = [PromptAt("a"), PromptAt("b", 9), PromptAt("c", 10)]
    with pytest.raises(UserError, match="one latent frame: move them apart, by 4"):
        generate(request(tmp_path, prompts=prompts), backbone=SimpleBackbone())


@pytest.mark.parametrize(
    ("prompts", "rule"),
    [
        ([], "the first prompt is missing: give one that begins at frame 0"),
        ([PromptAt("a", 50)], "the first prompt begins at frame 50: give one"),
    ],
)
def test_a_video_that_begins_without_a_prompt_is_refused(tmp_path, prompts, rule):
    with pytest.raises(UserError, match=rule):
        request(tmp_path, prompts=prompts).check()


@pytest.mark.parametrize(
    ("then", "rule"),
    [(20, "one prompt"), (21, "after the last of 21 frames"), (200, "after the last of 21 frames")],
)
def test_a_prompt_that_short_cannot_show_is_refused(tmp_path, then, rule):
    """``short`` makes 21 frames under one prompt, whatever the default of the others."""
    prompts = [PromptAt("a"), PromptAt("b", then)]
    few = {"method": "short", "frames": None, "overrides": {"steps": "2"}}
    with pytest.raises(UserError, match=rule):
        generate(request(tmp_path, prompts=prompts, **few), backbone=SimpleBackbone())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "out.json"])
def test_a_folder_where_a_file_is_to_be_is_refused_before_work(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder"):
        generate(request(tmp_path, overwrite=True), backbone=SimpleBackbone(poison_at=0))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 201, "x" * 300, "\N{SNOWMAN}" * 80])
def test_a_name_too_long_for_the_files_beside_is_refused_before_work(tmp_path, name):
    asked = dataclasses.replace(request(tmp_path), output=tmp_path / f"{name}.mp4")
    with pytest.raises(UserError, match="shorten it to 200"):
        asked.check()


def test_a_record_that_cannot_be_written_is_no_done(tmp_path, monkeypatch):
    """Breaks if the last line of output says "done" of a command that failed."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_json", full)
    result = generate(request(tmp_path, frames=5), backbone=SimpleBackbone())
    assert result.status == result.record["status"] == "failed"
    assert "No space left" in result.record["error"]


def test_a_decoders_nan_ends_the_video_and_keeps_what_was_before(tmp_path, monkeypatch):
    """Breaks if a picture that is no picture becomes a black one in a video that is told to be done."""
    backbone, push = SimpleBackbone(), SimpleDecoder.push
    monkeypatch.setattr(
        SimpleDecoder,
        "push",
        lambda self, z: push(self, z) * (1 if self.pushed < 6 else float("nan")),
    )
    result = generate(request(tmp_path), backbone=backbone)
    assert (result.status, result.frames) == ("failed", 17)
    assert "not finite" in json.loads((tmp_path / "out.json").read_text())["error"]


def test_nan_at_once_leaves_nothing(tmp_path):
    result = generate(request(tmp_path), backbone=SimpleBackbone(poison_at=1))
    assert result.status == "failed"
    assert list(tmp_path.iterdir()) == []


def test_nan_at_once_leaves_an_older_video_alone(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"older")
    generate(request(tmp_path, overwrite=True), backbone=SimpleBackbone(poison_at=1))
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


def test_an_older_record_goes_with_its_video_and_not_before(tmp_path, monkeypatch):
    """Breaks if a killed video is scored by the record and the prompt of the one that it replaced."""
    seen = []

    class Kept(Watcher):
        def passed(self, report):
            seen.append((*sorted(p.name for p in tmp_path.iterdir()), None))

        def wrote(self, frames, total):
            seen.append(tuple(p.name for p in tmp_path.iterdir()))

    generate(request(tmp_path, frames=9), backbone=SimpleBackbone())
    older = {p: p.read_bytes() for p in tmp_path.iterdir()}
    generate(request(tmp_path, overwrite=True), backbone=SimpleBackbone(poison_at=1))
    with monkeypatch.context() as patch:
        patch.setattr(media, "open", Mock(side_effect=PermissionError(13, "no")), raising=False)
        failed = generate(request(tmp_path, overwrite=True), backbone=SimpleBackbone())
    assert (failed.status, failed.frames) == ("failed", 0)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == older
    generate(request(tmp_path, overwrite=True), Kept(), SimpleBackbone())
    assert seen[0] == ("out.json", "out.mp4", "out.png", None)
    assert next(names for names in seen if None not in names) == ("out.mp4",)
    assert json.loads((tmp_path / "out.json").read_text())["frames"] == 45


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_an_endless_video_cleanly(tmp_path, number):
    class StopAt(Watcher):
        def wrote(self, frames, total):
            if total > 40:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    endless = request(tmp_path, frames=None, endless=True)
    result = generate(endless, StopAt(), SimpleBackbone())
    assert (result.status, result.signal) == ("stopped", number)
    assert result.frames == count_frames(tmp_path / "out.mp4") > 40
    assert json.loads((tmp_path / "out.json").read_text())["status"] == "stopped"
    assert signal.getsignal(number) is before


def test_a_stop_before_the_first_frame_leaves_nothing(tmp_path):
    class StopNow(Watcher):
        def passed(self, report):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StopRequested):
        generate(request(tmp_path), StopNow(), SimpleBackbone())
    assert list(tmp_path.iterdir()) == []


def test_a_stop_that_comes_when_the_video_is_whole_is_told(tmp_path, monkeypatch):
    """Breaks if a worker that was asked to end goes on because its last video was done."""
    draw = video.contact_sheet

    def interrupted(rows, title):
        os.kill(os.getpid(), signal.SIGTERM)
        return draw(rows, title=title)

    monkeypatch.setattr(video, "contact_sheet", interrupted)
    result = generate(request(tmp_path), backbone=SimpleBackbone())
    assert (result.status, result.signal) == ("done", signal.SIGTERM)
    assert json.loads((tmp_path / "out.json").read_text())["status"] == "done"


def test_signals_are_the_callers_who_says_when_to_end(tmp_path):
    heard = []

    class Kill(Watcher):
        def wrote(self, frames, total):
            if total > 20 and not heard:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        result = generate(request(tmp_path), Kill(), SimpleBackbone(), ended=lambda: bool(heard))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.status, result.signal, heard) == ("stopped", None, [signal.SIGTERM])
    assert 20 < result.frames < 45


def test_a_stop_waits_for_the_shielded_block():
    steps = []

    def work(stop):
        with stop.shielded():
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(0.2)
            steps.append("whole")
        steps.append("never")

    with StopSignals() as stop, pytest.raises(StopRequested):
        work(stop)
    assert steps == ["whole"]


def test_a_full_disk_keeps_what_plays(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        result = generate(request(tmp_path, frames=400), backbone=SimpleBackbone())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.status == "failed"
    assert isinstance(result.error, OSError)
    assert (tmp_path / "out.mp4").stat().st_size <= 8000
    assert 8 < result.frames == len(list(read_video(tmp_path / "out.mp4"))) < 400


def test_memory_does_not_grow_with_length(tmp_path):
    """At equal fill of the contact sheet (49 frames kept) as many numbers are alive."""
    import gc

    class Count(Watcher):
        counts = {}  # noqa: RUF012

        def wrote(self, frames, total):
            if total in (385, 769):
                gc.collect()
                # not an export's symbolic ones, which another test may have left
                alive = [o for o in gc.get_objects() if type(o) is torch.Tensor]
                self.counts[total] = sum(t.numel() for t in alive)

    generate(request(tmp_path, frames=772), Count(), SimpleBackbone())
    assert Count.counts[769] <= Count.counts[385] * 1.02


def test_names_are_checked_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "open_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UserError, match="unknown method 'mga': did you mean miga"):
        generate(request(tmp_path, method="mga"))
    with pytest.raises(UserError, match="unknown preset 'paperr': did you mean paper"):
        generate(request(tmp_path, preset="paperr"))
    with pytest.raises(UserError, match="no setting 'zigzg': did you mean zigzag"):
        generate(request(tmp_path, overrides={"zigzg": "3"}))
    with pytest.raises(UserError, match="steps is 'many': it must be a whole number"):
        generate(request(tmp_path, overrides={"steps": "many"}))
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked_before_the_text_encoder_is_at_work(tmp_path, monkeypatch):
    backbone = SimpleBackbone()
    monkeypatch.setattr(backbone, "encode", lambda prompts: pytest.fail("encoded"))
    for length in ({"frames": 45}, {"frames": None, "endless": True}):
        with pytest.raises(UserError, match="zigzag is 7: it must be from 1 to the window's 6"):
            generate(request(tmp_path, overrides=SMALL | {"zigzag": "7"}, **length), None, backbone)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_made_with_the_first_frame(tmp_path):
    wanted = dataclasses.replace(request(tmp_path), output=tmp_path / "new" / "out.mp4")
    generate(wanted, backbone=SimpleBackbone(poison_at=1))
    assert list(tmp_path.iterdir()) == []
    assert generate(wanted, backbone=SimpleBackbone()).status == "done"
    assert count_frames(tmp_path / "new" / "out.mp4") == 45
