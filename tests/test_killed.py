"""The real command in a process of its own, ended from outside."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miga_bench.media import count_frames, read_video

# miga-bench with the simple backbone under tiny-wan's name
DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import miga_bench.harness.generate as page
from simple_backbone import SimpleBackbone
page.open_model = lambda *args, **kwargs: SimpleBackbone()
from miga_bench.cli import main
sys.exit(main(sys.argv[1:]))
"""
SETTINGS = ("steps=16", "zigzag=2", "guidance_frames=2", "stride=3", "stage2_steps=3", "renoise=2")


@pytest.fixture
def start():
    """Start an endless run; none outlives its test."""
    started = []

    def run(output):
        arguments = ["generate", "a red circle", "--endless", "--quiet", "-o", str(output)]
        for setting in (*SETTINGS, "reflection=off"):
            arguments += ["--set", setting]
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for_bytes(process, path, size, seconds=120):
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size > size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no video yet"
        time.sleep(0.05)


def test_a_killed_run_leaves_a_playable_file(start, tmp_path):
    output = tmp_path / "out.mp4"
    process = start(output)
    wait_for_bytes(process, output, 20_000)
    process.kill()
    process.communicate()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4"]
    assert len(list(read_video(output))) == count_frames(output) > 30


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_cleanly(start, tmp_path, number, code):
    output = tmp_path / "out.mp4"
    process = start(output)
    wait_for_bytes(process, output, 10_000)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    record = json.loads(out.splitlines()[-1])
    assert record["status"] == "stopped"
    assert record["frames"] == count_frames(output)
    assert err == f"miga-bench: stopped: {output} keeps {record['frames']} frames\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.png"]
