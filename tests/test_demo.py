"""The demo's pictures and table, on videos the world itself renders."""

import dataclasses
import json
import math
import multiprocessing
import random

import pytest
from PIL import Image

from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.backbones.tiny.world import draw_look, render
from miga_bench.errors import UserError
from miga_bench.harness import demo as page
from miga_bench.harness.report.measures import measure_of
from miga_bench.media import VideoWriter, count_frames, read_video
from miga_bench.sampling import METHODS

FRAMES = 24


@pytest.fixture
def items(tmp_path, monkeypatch):
    """Videos of two captions; short's ends after 8 frames."""

    class Backbone:
        frame_rate = 16.0

    monkeypatch.setattr(page, "_backbone", lambda _: Backbone())
    items = []
    for k, caption in enumerate(held_out_prompts(2)):
        for label in page.COLUMNS:
            path = tmp_path / f"{k}-{label}.mp4"
            frames = 8 if label == "short" else FRAMES
            with VideoWriter(path, 16) as writer:
                writer.push(render(draw_look(parse_caption(caption), random.Random(k)), frames))
            items.append(page.DemoVideo(label, k, caption, FRAMES, path, "tiny-wan"))
    return items


def test_pictures_show_every_video_and_blanks_after_the_short_one(tmp_path, items):
    page._pictures(tmp_path, held_out_prompts(2), list(page.COLUMNS), FRAMES, items)
    video = list(read_video(tmp_path / "demo.mp4"))
    assert len(video) == FRAMES
    inside = (slice(None), 24 + 60, 6 + 60)  # the middle of short's first panel
    assert (video[0][inside].int() - 208).abs().max() > 10
    assert (video[-1][inside].int() - 208).abs().max() < 6
    sheet = Image.open(tmp_path / "demo.png")
    assert sheet.height > 2 * len(page.COLUMNS) * 64
    assert sheet.width > page.SHEET_COLUMNS * 64


def test_the_world_itself_scores_clean():
    scores = page._of_the_world(0, held_out_prompts(1)[0], 120, "tiny-wan")
    assert scores["asked_color"] > 0.99
    assert scores["hue_drift"] < 1
    assert scores["path"] > 0.1


def test_summary_leaves_out_what_could_not_be_measured():
    rows = [{"hue_drift": 2.0, "flicker": math.nan}, {"hue_drift": 4.0, "flicker": math.nan}]
    summary = page._summary(rows)
    assert summary["hue_drift"] == {
        "mean": 3.0,
        "sd": pytest.approx(math.sqrt(2)),
        "per_prompt": [2.0, 4.0],
    }
    assert "flicker" not in summary
    json.dumps(summary, allow_nan=False)


def test_the_table_has_every_method_and_calls_measures_as_reports_do(capsys):
    assert [*METHODS] == [*page.COLUMNS][: len(METHODS)]
    value = {"mean": 0.98765, "sd": None}
    found = {"found": value, "field_drift": value, "seconds": value}
    document = {"backbone": "tiny-wan", "prompts": [""], "frames": 9, "methods": {"short": found}}
    page._print_table(document)
    rows = [line.split("\u2502") for line in capsys.readouterr().out.splitlines()]
    shown = {row[1].strip(): row[2].strip() for row in rows if len(row) > 2}
    assert shown["seconds"] == "1"
    for label in ("found", "field_drift"):
        known = measure_of(f"world/{label}")
        title = f"{known.title}, {known.unit}" if known.unit else known.title
        assert shown[title] == known.number(0.98765)


@pytest.mark.parametrize(
    ("prompts", "frames", "rule"), [(0, 10, "--prompts 0"), (1, 0, "--frames 0")]
)
def test_numbers_are_checked_first(tmp_path, prompts, frames, rule):
    with pytest.raises(UserError, match=rule):
        page.demo(tmp_path / "demo", prompts, frames)
    assert not (tmp_path / "demo").exists()


def test_an_earlier_demo_needs_force(tmp_path):
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(UserError, match="--force"):
        page.demo(tmp_path, 1, 10)


def test_no_more_videos_are_made_at_a_time_than_there_are_cores_and_memory(monkeypatch):
    """Breaks if a container that may use two of 64 cores gets 64 processes, or a laptop swaps."""

    def at_a_time(cores, free, items):
        monkeypatch.setattr(page, "usable_cores", lambda: cores)
        monkeypatch.setattr(page, "free_bytes", lambda device: free)
        return page._processes(items)

    assert at_a_time(2, 64 << 30, 14) == 2
    assert at_a_time(64, 5 << 30, 14) == 5
    assert at_a_time(64, 64 << 30, 14) == 14
    assert at_a_time(8, 0, 14) == 1
    assert at_a_time(8, None, 14) == 8


def test_an_error_does_not_wait_for_the_other_videos(tmp_path):
    # an empty prompt is refused by a worker at once; the other video takes minutes
    good = page.DemoVideo("fifo", 0, held_out_prompts(1)[0], 2001, tmp_path / "a.mp4", "tiny-wan")
    bad = dataclasses.replace(good, prompt="", output=tmp_path / "b.mp4")
    with pytest.raises(UserError, match="the prompt is empty"):
        list(page._make_all([bad, good]))
    assert not multiprocessing.active_children()
    assert not good.output.exists() or count_frames(good.output) < good.frames
