"""VBench-Long's cutting, mapping and fusing against numbers of the original functions.

``golden/vbench_long.json`` says what was run; the formula in it stands again in ``features`` below.
"""

import fcntl
import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_video_scores import SmallEncoder, video

from miga_bench.errors import UserError
from miga_bench.metrics import SubjectConsistency, TemporalFlickering
from miga_bench.metrics.dynamic import DynamicDegree
from miga_bench.metrics.functional.consistency import feature_consistency
from miga_bench.metrics.long import (
    ClipStream,
    LongVideo,
    clip_length,
    fuse,
    long_score,
    map_fast,
    mapping_table,
)
from miga_bench.metrics.long_stream import LongVideos
from miga_bench.metrics.networks.dreamsim import FILES, DreamSim
from miga_bench.metrics.suites import public_network
from miga_bench.offline import OFFLINE

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vbench_long.json").read_text())
SCORED = [suite for suite in GOLDEN["suites"] if suite["error"] is None]
DIMENSIONS = ["subject_consistency", "background_consistency"]
quick = settings(deadline=None, max_examples=80)


def label(suite):
    return f"{suite['title']}, {suite['dimension'].split('_')[0]}, {suite['development']}"


def measured(suite):
    """Return the original's own scores of a golden suite as our input."""
    return [
        LongVideo(v["name"], tuple(v["clips"]), min(v["frames"], 16), v["fast"])
        for v in suite["videos"]
    ]


def features(number, frames):
    """Return the golden features ``[frames, 4]`` of a video."""
    t, j = torch.arange(frames, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    wave = torch.sin(0.037 * t * (j + 1) + 0.9 * number + j) + 0.2 * torch.sin(1.9 * t + j)
    return (1.2 + wave).float()


def consistency(rows):
    """Return VBench's consistency of features, by loops."""
    unit = torch.nn.functional.normalize(torch.stack(list(rows)).double(), dim=-1)
    terms = [
        (max(0, float(unit[t] @ unit[t - 1])) + max(0, float(unit[t] @ unit[0]))) / 2
        for t in range(1, len(unit))
    ]
    return sum(terms) / len(terms)


def streamed(items, length):
    stream = ClipStream(length)
    found = [clip for item in items if (clip := stream.push(item)) is not None]
    return [*found, *([last] if (last := stream.finish()) is not None else [])]


# Clips


@pytest.mark.parametrize("case", GOLDEN["clips"], ids=lambda c: f"{c['frames']}-{c['fps']}")
def test_clips_are_the_originals(case):
    clips = streamed(range(case["frames"]), clip_length(case["fps"], case["seconds"]))
    assert [(clip.start, clip.stop) for clip in clips] == [tuple(b) for b in case["bounds"]]


@quick
@given(st.integers(1, 200), st.integers(1, 40))
def test_clips_cover_every_frame_and_are_equally_long(frames, length):
    clips = streamed(range(frames), length)
    assert {n for clip in clips for n in clip.items} == set(range(frames))
    assert {clip.stop - clip.start for clip in clips} == {min(length, frames)}
    assert len(clips) == math.ceil(frames / length)
    assert all(c.items == tuple(range(c.start, c.stop)) for c in clips)


def test_a_stream_keeps_one_clip():
    stream = ClipStream(16)
    for n in range(1000):
        stream.push(n)
    assert list(stream._newest) == list(range(984, 1000))


def test_an_empty_stream_has_no_clip():
    assert ClipStream(16).finish() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.5,), "0.5 frames per second"),
        ((math.nan,), "nan frames per second"),
        ((8, 0.5), "clips of 0.5 s"),
        ((8, 1.5), "clips of 1.5 s"),
        ((8, math.inf), "clips of inf s"),
    ],
)
def test_mistakes_are_one_line(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        clip_length(*arguments)
    assert "\n" not in str(caught.value)


def test_a_video_is_measured_clip_by_clip_and_by_the_first_frames_of_all():
    inside, across = SmallEncoder(), SmallEncoder(1)
    long = LongVideos([SubjectConsistency(inside)], {"subject_consistency": across}, 4)
    frames = video(10)
    clips = [frames[:4], frames[4:8], frames[6:]]
    for _ in range(2):  # nothing of a video is left to the next
        for part in frames.split(3):
            long.extend(part)
        found = long.end("a")["subject_consistency"]
        assert (found.name, found.clip_frames) == ("a", 4)
        within = [feature_consistency(inside(clip)).item() for clip in clips]
        assert found.clips == pytest.approx(within, abs=1e-6)
        firsts = torch.stack([clip[0] for clip in clips])
        assert found.fast == pytest.approx(feature_consistency(across(firsts)).item(), abs=1e-6)
    long.extend(frames[:3])
    alone = long.end("b")["subject_consistency"]
    assert (len(alone.clips), alone.clip_frames, alone.fast) == (1, 3, None)


class Refuses(TemporalFlickering):
    """Has no value of any video."""

    def refusal(self):
        return super().refusal() or "too small"


def test_a_dimension_that_cannot_score_a_long_video_leaves_the_others():
    encoder = SmallEncoder()
    long = LongVideos([Refuses(), SubjectConsistency(encoder)], {}, 4)
    for _ in range(2):
        long.extend(video(10))
        found = long.end("a")
        assert found["temporal_flickering"] == LongVideo("a", (), 4, reason="too small")
        assert len(found["subject_consistency"].clips) == 3
        assert found["subject_consistency"].reason is None
    alone = LongVideos([Refuses()], {}, 4)
    alone.extend(video(10))
    with pytest.raises(UserError, match=r"^too small$"):
        alone.end("a")
    with pytest.raises(UserError, match="no frames"):
        LongVideos([TemporalFlickering()], {}, 4).end("a")


class Rates(DynamicDegree):
    """Notes the rates it is told."""

    def begin(self, prompt=None, video_id=None, fps=None):
        self.told = fps
        super().begin(prompt, video_id, fps)


@pytest.mark.parametrize(("fps", "step"), [(20.5, 2), (28.9, 4), (24.0, 3)])
def test_clips_are_of_the_whole_rate_that_the_original_writes_them_at(fps, step):
    score = Rates()
    long = LongVideos([score], {}, clip_length(fps), fps)
    long.extend(video(3, size=8))
    assert len(long.end("a")["dynamic_degree"].clips) == 1
    assert (score.told, score._step) == (int(fps), step)


# Mapping and fusing


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_mapping_and_fusing_equal_the_original_exactly(dimension):
    table = mapping_table(dimension)
    assert len(table.keys) == len(table.values) == 101
    for raw, mapped, fused in GOLDEN["mapped"][dimension]:
        assert map_fast(raw, table) == mapped
        assert fuse(0.8, map_fast(raw, table)) == fused


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_mapping_rises_and_keeps_nan(dimension):
    table = mapping_table(dimension)
    mapped = [map_fast(n / 1000, table) for n in range(1001)]
    assert mapped == sorted(mapped)
    assert math.isnan(map_fast(math.nan, table))


def test_tables_carry_their_license():
    for file in (Path(__file__).parents[2] / "miga_bench/metrics/data").glob("*_table.yaml"):
        text = file.read_text()
        assert "Apache License, Version 2.0" in text
        assert "Vchitect/VBench" in text


def test_only_consistencies_have_a_fast_branch():
    assert mapping_table("motion_smoothness") is None


def test_weights():
    assert fuse(0.5, 1.0) == 0.75
    assert fuse(0.5, 1.0, development=False) == 0.5
    assert fuse(0.5, 0.0) == fuse(0.5, None) == 0.5


# Backgrounds


class Package(torch.nn.Module):
    """What the package dreamsim makes, cut down: it remembers its device, and shows what it was given."""

    def __init__(self, device, cache_dir):
        super().__init__()
        self.device, self.cache_dir = device, Path(cache_dir)
        self.weight = torch.nn.Parameter(torch.zeros(1, device=device))

    def embed(self, pictures):
        self.pictures = pictures
        return pictures.flatten(1)


@pytest.fixture
def dreamsim(tmp_path, monkeypatch):
    """Put a package in the place of dreamsim that finds its folder and fetches nothing."""

    def make(pretrained, device, cache_dir):
        assert Path(cache_dir).is_dir()
        return Package(device, cache_dir), None

    monkeypatch.setitem(sys.modules, "dreamsim", types.SimpleNamespace(dreamsim=make))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "not" / "yet"))
    for switch in OFFLINE:
        monkeypatch.delenv(switch, raising=False)
    return tmp_path / "not" / "yet" / "dreamsim"


def test_dreamsim_is_made_where_it_runs(dreamsim, monkeypatch):
    # what is only looked like has no values
    monkeypatch.setattr("miga_bench.metrics.networks.dreamsim.tensors_sha256", lambda tensors: "")
    public_network.cache_clear()
    model = public_network("DreamSim", "meta").model
    assert (model.device, model.weight.device.type) == ("meta", "meta")
    assert model.cache_dir == dreamsim
    public_network.cache_clear()


def test_dreamsims_weights_and_version_are_known(dreamsim, monkeypatch):
    """Breaks if scores by one DreamSim pass as those by another."""
    monkeypatch.setattr("miga_bench.metrics.networks.weight_files.version", lambda name: "0.2.1")
    first, moved = DreamSim().provenance, Package("cpu", dreamsim)
    moved.weight.data += 1
    monkeypatch.setattr(sys.modules["dreamsim"], "dreamsim", lambda **_: (moved, None))
    second = DreamSim().provenance
    assert first.weights == "of the package dreamsim 0.2.1"
    assert len(first.sha256 or "") == 64
    assert second == replace(first, sha256=second.sha256)
    assert second.sha256 != first.sha256


def test_dreamsim_sees_what_interpolation_overshoots(dreamsim):
    edge = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255
    network = DreamSim()
    network(edge)
    assert network.model.pictures.shape == (1, 3, 224, 224)
    assert network.model.pictures.min() < 0
    assert network.model.pictures.max() > 1


def test_dreamsim_fetches_nothing_where_downloads_are_off(dreamsim, monkeypatch):
    monkeypatch.setenv("MIGA_BENCH_OFFLINE", "1")
    with pytest.raises(UserError, match=r"downloads are off \(MIGA_BENCH_OFFLINE\)"):
        DreamSim()
    assert not dreamsim.exists()
    for name in FILES:
        (dreamsim / name).mkdir(parents=True)
    DreamSim()


def test_one_process_at_a_time_fetches_dreamsim(dreamsim, monkeypatch):
    held = []

    def make(pretrained, device, cache_dir):
        with open(Path(cache_dir) / ".lock", "rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(True)
        return Package(device, cache_dir), None

    monkeypatch.setattr(sys.modules["dreamsim"], "dreamsim", make)
    DreamSim()
    assert held == [True]


def test_without_dreamsim_the_message_says_which_and_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match=r"pip install 'dreamsim>=0\.2'.*--in-clip-only"):
        DreamSim()


# Suites


@pytest.mark.parametrize("suite", SCORED, ids=label)
def test_reference_is_the_original(suite):
    videos = measured(suite)
    found = long_score(videos, suite["dimension"], "reference", suite["development"])
    assert found.total == pytest.approx(suite["total"], abs=1e-14)
    for ours, theirs in zip(found.videos, suite["videos"], strict=True):
        fused = [fuse(c, ours.mapped, suite["development"]) for c in theirs["clips"]]
        assert fused == theirs["fused"]  # every clip, to the last bit
        assert ours.score == pytest.approx(sum(fused) / len(fused), abs=1e-14)


@pytest.mark.parametrize("suite", SCORED, ids=label)
def test_streamed_features_give_the_originals_scores(suite):
    """Frames seen once, in order: in-clip and fast scores are those the original computed."""
    shift = 0.3 if suite["development"] else 0.0
    for number, theirs in enumerate(suite["videos"]):
        clips = streamed(features(number, theirs["frames"]), clip_length(GOLDEN["fps"]))
        assert [consistency(c.items) for c in clips] == pytest.approx(theirs["clips"], abs=1e-6)
        if theirs["fast"] is not None:
            firsts = [c.items[0] + shift for c in clips]
            assert consistency(firsts) == pytest.approx(theirs["fast"], abs=1e-6)


def suite_of(title, dimension="subject_consistency"):
    return next(
        s
        for s in SCORED
        if s["title"] == title and s["development"] and s["dimension"] == dimension
    )


def readings(title, dimension="subject_consistency"):
    videos = measured(suite_of(title, dimension))
    return [long_score(videos, dimension, reading) for reading in ("exact", "reference")]


def test_readings_agree_for_equal_lengths_and_plain_names():
    exact, reference = readings("equal lengths")
    assert exact.total == pytest.approx(reference.total, abs=1e-14)


def test_exact_weighs_videos_alike():
    exact, reference = readings("unequal, last clips reach back")
    assert exact.total == pytest.approx(sum(v.score for v in exact.videos) / 3)
    clips = (4, 3, 10)
    weighted = sum(n * v.score for n, v in zip(clips, exact.videos, strict=True)) / sum(clips)
    assert reference.total == pytest.approx(weighted)
    assert abs(exact.total - reference.total) > 1e-4


def test_underscores_lose_the_fast_score_in_the_reference_only():
    exact, reference = readings("a name with an underscore")
    assert reference.videos[0].mapped is None
    assert reference.videos[0].score == reference.videos[0].in_clip
    assert exact.videos[0].score > exact.videos[0].in_clip
    assert exact.videos[1] == reference.videos[1]


def test_underscores_find_another_video_in_the_reference_only():
    exact, reference = readings("an underscore and a video of the cut name")
    assert reference.videos[1].mapped == exact.videos[0].mapped != exact.videos[1].mapped


def test_the_reference_looks_names_up_in_their_own_folder():
    """Breaks if one of two videos of a name gets the other's fast score."""
    names = {"old/a": 0.7, "new/a": 0.9, "new_er/b_1": 0.6, "new_er/b": 0.8}
    videos = [LongVideo(name, (0.5, 0.5), 16, fast) for name, fast in names.items()]
    found = {
        reading: [v.mapped for v in long_score(videos, "subject_consistency", reading).videos]
        for reading in ("exact", "reference")
    }
    one, other, cut, whole = found["exact"]
    assert len({one, other, cut, whole}) == 4
    assert found["reference"] == [one, other, whole, whole]


def test_suites_of_single_clips():
    exact, reference = readings("only one clip each")
    values = [v["clips"][0] for v in suite_of("only one clip each")["videos"]]
    assert exact.total == pytest.approx(sum(values) / 3)
    assert reference.total == pytest.approx(
        (11 * values[0] + 15 * values[1] + 8 * values[2]) / 34, abs=1e-12
    )
    exact, reference = readings("only one clip each", "background_consistency")
    assert exact.total == reference.total == pytest.approx(sum(values) / 3)


def test_without_the_development_flag_no_fast_score_is_needed():
    videos = [LongVideo("a", (0.5, 0.7), 16), LongVideo("b", (0.9,), 16)]
    assert long_score(videos, "subject_consistency", development=False).total == pytest.approx(0.75)


def test_other_dimensions_are_means():
    videos = [LongVideo("a", (0.5, 0.7), 16), LongVideo("b", (0.9,), 16)]
    assert long_score(videos, "motion_smoothness").total == pytest.approx(0.75)
    assert long_score(videos, "motion_smoothness", "reference").total == pytest.approx(0.7)


def test_what_does_not_belong_is_refused():
    with pytest.raises(UserError, match="no video"):
        long_score([], "subject_consistency")
    with pytest.raises(ValueError, match="2 clips need a fast score"):
        long_score([LongVideo("a", (0.5, 0.7), 16)], "subject_consistency")
    with pytest.raises(ValueError, match="at least two clips"):
        long_score([LongVideo("a", (0.5,), 16, 0.4)], "subject_consistency")
    with pytest.raises(ValueError, match="fast branch"):
        long_score([LongVideo("a", (0.5, 0.7), 16, 0.4)], "motion_smoothness")
