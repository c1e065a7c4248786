"""The endurance run: what it sees of a process, and that it says so when that is wrong."""

import json
import sys

import pytest
import torch

from miga_bench.errors import FailedError
from miga_bench.harness import endurance
from miga_bench.media import VideoWriter

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows other processes")


def test_a_file_kept_open_every_while_is_growth():
    assert endurance.growth([3, 8, 12, *[12] * 40]) == 0
    assert endurance.growth([12 + look // 10 for look in range(100)]) > 3


def test_every_frame_is_played_and_every_part_held_against_the_opening(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 16, lossless=True) as writer:
        writer.push(torch.full((90, 3, 64, 64), 0.5))
        writer.push(torch.full((90, 3, 64, 64), 0.8))
    played, curve = endurance.drift_curve(tmp_path / "a.mp4", 180)
    assert played == 180
    assert curve[0]["field_drift"] < 0.01 < 0.2 < curve[-1]["field_drift"]


@LINUX
def test_a_video_that_breaks_off_and_memory_that_grows_are_told(monkeypatch, capsys, tmp_path):
    def watch(backbone, frames, settings, folder, seconds=0.0):
        video = folder / f"{frames}.mp4"
        with VideoWriter(video, 16) as writer:
            writer.push(torch.full((min(frames, 110), 3, 64, 64), 128, dtype=torch.uint8))
        cost = {"peak_memory_mib": {"process": peak}, "total_seconds": 1.0}
        record = {"frames": frames, "cost": cost}
        return endurance.Watched(record, video, early, [9, 9, 9], [4, 4, 4])

    def failed(frames):
        code = endurance.main(["--frames", str(frames)])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])["failed"]
        assert code == (1 if found else 0)
        return found

    monkeypatch.setattr(endurance, "watch", watch)
    monkeypatch.setattr(endurance, "EARLY", 50)
    peak, early = 101.0, 100.0
    assert failed(120) == ["frames that play"]
    assert failed(110) == []
    peak = 103.0
    assert failed(110) == ["peak memory, whole / 50 frames"]
    early = 0.0  # never seen: nothing to hold it against
    assert failed(110) == ["peak memory, whole / 50 frames"]


def test_without_proc_it_is_refused_before_a_frame_is_made(monkeypatch, tmp_path, capsys):
    """Breaks if an endless run is watched for ever where its first frames are never seen."""
    monkeypatch.setattr(endurance, "PROC", tmp_path)
    monkeypatch.setattr(endurance.subprocess, "Popen", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(FailedError, match="use Linux"):
        endurance.watch("tiny-wan", None, (), tmp_path, seconds=1)
    with pytest.raises(SystemExit, match="2"):
        endurance.main(["--hours", "1"])
    assert "use Linux" in capsys.readouterr().err


@LINUX
def test_a_real_process_is_looked_at_and_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(endurance, "EARLY", 1)
    # few passes until the first frames
    settings = ("steps=5", "zigzag=7", "stage2_steps=0", "renoise=0", "reflection=off")
    settings += ("guidance_scale=1",)
    watched = endurance.watch("tiny-wan", None, settings, tmp_path, seconds=0)
    assert watched.record["status"] == "stopped"
    assert endurance.drift_curve(watched.video, 40)[0] == watched.record["frames"] > 0
    assert 100 < watched.early_peak_mib <= watched.peak_mib
    assert min(watched.threads) >= 1
    assert max(watched.files) >= 3


@LINUX
def test_too_short_a_long_video_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        endurance.main(["--frames", "100"])
    assert "the least is 1000" in capsys.readouterr().err
