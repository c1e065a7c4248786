"""Runs that are killed at random moments and issued again end as if nobody had disturbed them."""

import json
import random
import time

import pytest
from run_workers import Workers, configuration

from miga_bench.media import count_frames

ITEMS, KILLS = 12, 10


def manifests(root):
    """Return what the manifests say, timings aside, as it stands on disk."""
    found = {}
    for path in sorted((root / "items").glob("*/manifest.json")):
        text = path.read_text()
        assert text.count('\n  "timings": {') == 1
        found[path.parent.name] = text.split('\n  "timings": {')[0]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    workers = Workers(["--config", configuration(root)])
    status = workers.finish()
    assert (status["status"], status["done"]) == ("done", ITEMS)
    return manifests(root), workers.calls


def wait_for_calls(workers, calls):
    """Wait until the denoiser was called so often; tell whether it was."""
    while workers.calls < calls:
        if not all(process.is_alive() for process in workers.processes):
            return False
        time.sleep(0.001)
    return True


def files_are_as_the_manifests_say(root):
    for folder in (root / "items").glob("[0-9a-f]*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert count_frames(folder / "video.mp4") == manifest["frames"] == 9
        assert set(manifest["files"]) | {"manifest.json"} == {p.name for p in folder.iterdir()}


def test_ten_kills_leave_no_trace(tmp_path, undisturbed):
    expected, calls = undisturbed
    assert len(expected) == ITEMS
    dice = random.Random(0)
    arguments = ["--config", configuration(tmp_path)]
    landed = made = 0
    for _ in range(KILLS):
        workers = Workers(arguments)
        hit = wait_for_calls(workers, dice.randint(1, calls // ITEMS * 2))
        time.sleep(dice.uniform(0, 0.02))  # moments between passes: encoding, hashing, renaming
        landed += hit and workers.processes[0].is_alive()
        workers.end()
        finished = manifests(tmp_path)
        assert finished.items() <= expected.items()
        assert len(finished) >= made  # what is whole stays
        made = len(finished)
        assert not (tmp_path / "run" / "status.json").exists() or not landed
    assert landed >= KILLS // 2
    status = Workers(arguments).finish()
    assert (status["status"], status["done"]) == ("done", ITEMS)
    assert manifests(tmp_path) == expected
    files_are_as_the_manifests_say(tmp_path)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_killed(tmp_path, undisturbed, victim):
    expected, calls = undisturbed
    arguments = ["--config", configuration(tmp_path, trainer__devices=2, trainer__strategy="ddp")]
    workers = Workers(arguments, 2)
    assert wait_for_calls(workers, calls // 3)
    workers.processes[victim].kill()
    workers.processes[victim].join()
    again = Workers(arguments, 2)  # while the survivor may still be at work
    status = again.finish()
    workers.end()
    assert (status["status"], status["done"]) == ("done", ITEMS)
    assert manifests(tmp_path) == expected
    files_are_as_the_manifests_say(tmp_path)


def test_a_whole_run_is_not_made_again(tmp_path, undisturbed):
    expected, calls = undisturbed
    arguments = ["--config", configuration(tmp_path)]
    first = Workers(arguments)
    first.finish()
    assert first.calls == calls
    second = Workers(arguments)
    assert second.finish()["done"] == ITEMS
    assert second.calls == 0
    other = Workers(["--config", configuration(tmp_path, "other", data__seeds=[1, 2])])
    assert other.finish()["done"] == ITEMS
    assert 0 < other.calls < calls * 0.6  # seed 1 lies there already
    assert manifests(tmp_path).items() >= expected.items()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_found_as_under_torchrun_make_the_same(tmp_path, undisturbed, count):
    expected, calls = undisturbed
    changes = {"trainer__devices": count, "trainer__strategy": "ddp"}
    workers = Workers(["--config", configuration(tmp_path, **changes)], count)
    assert workers.finish()["done"] == ITEMS
    assert workers.calls == calls  # nothing lost, nothing twice
    assert manifests(tmp_path) == expected
