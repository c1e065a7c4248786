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
    return manifests(root), workers.rows


def files_are_as_the_manifests_say(root):
    for folder in (root / "items").glob("[0-9a-f]*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert count_frames(folder / "video.mp4") == manifest["frames"] == 9
        assert set(manifest["files"]) | {"manifest.json"} == {p.name for p in folder.iterdir()}


def test_ten_kills_leave_no_trace(tmp_path, undisturbed):
    expected, rows = undisturbed
    assert len(expected) == ITEMS
    dice = random.Random(0)
    arguments = ["--config", configuration(tmp_path)]
    landed = made = 0
    for _ in range(KILLS):
        workers = Workers(arguments)
        hit = workers.wait_for_rows(dice.randint(1, rows // ITEMS * 2))
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
    expected, rows = undisturbed
    arguments = ["--config", configuration(tmp_path, trainer__devices=2, trainer__strategy="ddp")]
    workers = Workers(arguments, 2)
    assert workers.wait_for_rows(rows // 3)
    workers.processes[victim].kill()
    workers.processes[victim].join()
    if victim:  # process 0 holds the run until it notices
        workers.ended(within=60)
    again = Workers(arguments, 2)  # the survivor may still be at work
    status = again.finish()
    workers.end()
    assert (status["status"], status["done"]) == ("done", ITEMS)
    assert manifests(tmp_path) == expected
    files_are_as_the_manifests_say(tmp_path)


def test_the_others_end_by_themselves_when_process_0_is_killed(tmp_path):
    slow = {"class_path": "run_workers.CountingBackbone", "init_args": {"seconds": 1}}
    changes = {"model__backbone": slow, "trainer__devices": 3, "trainer__strategy": "ddp"}
    workers = Workers(["--config", configuration(tmp_path, **changes)], 3)
    assert workers.wait_for_rows(6)  # minutes of work are left to each
    workers.processes[0].kill()
    codes = workers.ended(within=40)
    assert codes == [-9, 1, 1]
    assert not list((tmp_path / "items").glob("*/manifest.json"))


def test_a_whole_run_is_not_made_again(tmp_path, undisturbed):
    expected, rows = undisturbed
    arguments = ["--config", configuration(tmp_path)]
    first = Workers(arguments)
    first.finish()
    assert first.rows == rows
    second = Workers(arguments)
    assert second.finish()["done"] == ITEMS
    assert second.rows == 0
    other = Workers(["--config", configuration(tmp_path, "other", data__seeds=[1, 2])])
    assert other.finish()["done"] == ITEMS
    assert 0 < other.rows < rows * 0.6  # seed 1 lies there already
    assert manifests(tmp_path).items() >= expected.items()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_found_as_under_torchrun_make_the_same(tmp_path, undisturbed, count):
    expected, rows = undisturbed
    changes = {"trainer__devices": count, "trainer__strategy": "ddp"}
    workers = Workers(["--config", configuration(tmp_path, **changes)], count)
    assert workers.finish()["done"] == ITEMS
    assert workers.rows == rows  # nothing lost, nothing twice
    assert manifests(tmp_path) == expected
