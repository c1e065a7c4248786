"""The command in a process of its own, ended from outside."""

import json
import os
import signal
import time

import pytest
import run_workers

from miga_bench.media import count_frames, read_video

SETTINGS = ("steps=16", "zigzag=2", "guidance_frames=2", "stride=3", "stage2_steps=3", "renoise=2")


@pytest.fixture
def start(tmp_path_factory):
    """Start an endless run; return its process and the files of what it says. None outlives its test."""
    started = []
    said = [tmp_path_factory.mktemp("said") / name for name in ("out", "err")]

    def run(output):
        arguments = ["a red circle", "--endless", "--quiet", "-o", str(output)]
        for setting in (*SETTINGS, "reflection=off"):
            arguments += ["--set", setting]
        task = (arguments, *map(str, said))
        process = run_workers.context().Process(target=run_workers.generate_command, args=task)
        process.start()
        started.append(process)
        return process, *said

    yield run
    for process in started:
        process.kill()
        process.join()


def wait_for_bytes(process, path, size, seconds=120):
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size > size):
        assert process.is_alive(), process
        assert time.monotonic() < end, "no video yet"
        time.sleep(0.05)


def test_a_killed_run_leaves_a_playable_file(start, tmp_path):
    output = tmp_path / "out.mp4"
    process, *_ = start(output)
    wait_for_bytes(process, output, 20_000)
    process.kill()
    process.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4"]
    assert len(list(read_video(output))) == count_frames(output) > 30


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_cleanly(start, tmp_path, number, code):
    output = tmp_path / "out.mp4"
    process, out, err = start(output)
    wait_for_bytes(process, output, 10_000)
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == code
    record = json.loads(out.read_text().splitlines()[-1])
    assert record["status"] == "stopped"
    assert record["frames"] == count_frames(output)
    assert err.read_text() == f"miga-bench: stopped: {output} keeps {record['frames']} frames\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.png"]
