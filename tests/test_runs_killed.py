"""Runs that are killed at random moments and issued again end as if nobody had disturbed them."""

import json
import random
import time

import pytest
from run_workers import Workers, configuration, slurm, torchrun_on_nodes

from miga_bench.media import count_frames

ITEMS, KILLS = 12, 10


def configured(root, name="run", **changes):
    """Return a run whose videos are scored too."""
    scorer = {"class_path": "run_workers.CountingScorer"}
    return configuration(root, name, model__metrics=[scorer], **changes)


def manifests(root):
    """Return what the manifests say, timings aside, as it stands on disk."""
    found = {}
    for path in sorted((root / "items").glob("*/manifest.json")):
        text = path.read_text()
        assert text.count('\n  "timings": {') == 1
        found[path.parent.name] = text.split('\n  "timings": {')[0]
    return found


def scores(root):
    """Return the files of scores; a kill may leave a hidden one that was about to become one of them."""
    return {
        f"{path.parents[1].name}/{path.name}": path.read_text()
        for path in (root / "items").glob("*/scores/[!.]*")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that nobody disturbed: its folder, manifests, scores, and the rows it took."""
    root = tmp_path_factory.mktemp("undisturbed")
    workers = Workers(["--config", configured(root)])
    status = workers.finish()
    assert (status["status"], status["done"], status["unscored"]) == ("done", ITEMS, [])
    assert len(manifests(root)) == len(scores(root)) == ITEMS
    return root, manifests(root), scores(root), workers.rows


def files_are_as_the_manifests_say(root):
    for folder in (root / "items").glob("[0-9a-f]*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert count_frames(folder / "video.mp4") == manifest["frames"] == 9
        names = {"manifest.json", "scores"} | set(manifest["files"])
        assert names == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("launcher", [torchrun_on_nodes, slurm], ids=lambda one: one.__name__)
def test_two_machines_make_the_same(tmp_path, undisturbed, launcher):
    """Breaks if processes of several nodes do not find each other, or each takes itself for the first."""
    _, expected, scored, rows = undisturbed
    changes = {"trainer__devices": 1, "trainer__num_nodes": 2, "trainer__strategy": "ddp"}
    workers = Workers(["--config", configured(tmp_path, **changes)], 2, launcher)
    assert workers.finish()["done"] == ITEMS
    assert workers.rows == rows
    assert (manifests(tmp_path), scores(tmp_path)) == (expected, scored)


def test_ten_kills_leave_no_trace(tmp_path, undisturbed):
    _, expected, scored, rows = undisturbed
    dice = random.Random(0)
    arguments = ["--config", configured(tmp_path)]
    landed = made = unscored = 0
    for number in range(KILLS):
        workers = Workers(arguments)
        # the last of a video's rows is its scorer's
        each = rows // ITEMS
        hit = workers.wait_for_rows(dice.randint(1, each * 2) if number % 2 else each)
        # moments between passes, while it is scored and right after: encoding, hashing, renaming
        time.sleep(dice.uniform(0, 0.02 if number % 2 else 0.04))
        landed += hit and workers.processes[0].is_alive()
        workers.end()
        finished, told = manifests(tmp_path), scores(tmp_path)
        assert finished.items() <= expected.items()
        assert told.items() <= scored.items()
        assert len(finished) >= made  # what is whole stays
        unscored += len(finished) > len(told)
        made = len(finished)
        assert not (tmp_path / "run" / "status.json").exists() or not landed
    assert landed >= KILLS // 2
    assert unscored, "a kill landed while a video was scored"
    status = Workers(arguments).finish()
    assert (status["status"], status["done"], status["unscored"]) == ("done", ITEMS, [])
    assert manifests(tmp_path) == expected
    assert scores(tmp_path) == scored
    files_are_as_the_manifests_say(tmp_path)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_killed(tmp_path, undisturbed, victim):
    _, expected, scored, rows = undisturbed
    arguments = ["--config", configured(tmp_path, trainer__devices=2, trainer__strategy="ddp")]
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
    assert scores(tmp_path) == scored
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


def test_a_whole_run_is_not_made_again(undisturbed):
    root, expected, scored, rows = undisturbed
    again = Workers(["--config", configured(root)])
    assert again.finish()["done"] == ITEMS
    assert again.rows == 0
    other = Workers(["--config", configured(root, "other", data__seeds=[1, 2])])
    assert other.finish()["done"] == ITEMS
    assert 0 < other.rows < rows * 0.6  # seed 1 lies there already
    assert manifests(root).items() >= expected.items()
    assert scores(root).items() >= scored.items()


def test_processes_found_as_under_torchrun_make_the_same(tmp_path, undisturbed):
    _, expected, scored, rows = undisturbed
    changes = {"trainer__devices": 4, "trainer__strategy": "ddp"}
    workers = Workers(["--config", configured(tmp_path, **changes)], 4)
    assert workers.finish()["done"] == ITEMS
    assert workers.rows == rows  # nothing lost, nothing twice
    assert (manifests(tmp_path), scores(tmp_path)) == (expected, scored)
