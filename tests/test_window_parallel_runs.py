"""Runs whose processes share videos: as one process makes them, whatever happens to one of them."""

import json
import os
import random
import signal
import time
from contextlib import suppress

import pytest
import torch
from run_workers import Workers, configuration

from miga_bench.errors import UserError
from miga_bench.harness.teams import check_size
from miga_bench.media import read_video

ITEMS = 4
FEW = {"data__prompts": [f"a circle {'so ' * n}red" for n in range(2)]}
SLOW = {"class_path": "run_workers.CountingBackbone", "init_args": {"seconds": 0.02}}


def arguments(root, count=1, size=1, name="run", **changes):
    """Return what starts a run of ``count`` processes, ``size`` for each video."""
    if count > 1:
        changes |= {"trainer__devices": count, "trainer__strategy": "ddp"}
    if size > 1:
        changes |= {"run__window_parallel": size}
    return ["--config", configuration(root, name, model__lossless=True, **FEW, **changes)]


def made(root):
    """Return each item's manifest and frames."""
    found = {}
    for path in sorted((root / "items").glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        assert manifest["status"] == "done"
        found[path.parent.name] = manifest, torch.stack(list(read_video(path.parent / "video.mp4")))
    return found


def assert_same(found, expected):
    """Compare all but what a making's time and batches decide."""
    assert found.keys() == expected.keys()
    for key, (manifest, frames) in found.items():
        as_alone, frames_alone = expected[key]
        for part in ("spec", "frames", "cost", "backbone", "error"):
            assert manifest[part] == as_alone[part]
        torch.testing.assert_close(frames, frames_alone, rtol=0, atol=1.5 / 255)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    workers = Workers(arguments(root))
    assert workers.finish()["done"] == ITEMS
    return made(root), workers.rows


@pytest.mark.parametrize(("count", "size"), [(2, 2), (4, 2), (4, 4)])
def test_together_as_alone(tmp_path, alone, count, size):
    expected, rows = alone
    workers = Workers(arguments(tmp_path, count, size), count)
    assert workers.finish()["done"] == ITEMS
    found = made(tmp_path)
    assert_same(found, expected)
    assert {manifest["timings"]["processes"] for manifest, _ in found.values()} == {size}
    assert workers.rows == rows  # nothing lost, nothing twice
    assert min(workers.counter) > 0.3 * rows / count  # some calls have a row for two of four only


def test_teams_of_one_are_none_bit_for_bit(tmp_path, alone):
    workers = Workers([*arguments(tmp_path), "--run.window_parallel", "1"])
    assert workers.finish()["done"] == ITEMS
    for key, (manifest, _) in made(tmp_path).items():
        assert manifest["files"] == alone[0][key][0]["files"]


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_one_fails_the_item_and_the_next_is_whole(tmp_path, alone, culprit):
    prompt = "a circle red"
    poisoned = {"poison": prompt, "poison_rank": culprit}
    backbone = {"class_path": "run_workers.CountingBackbone", "init_args": poisoned}
    status = Workers(arguments(tmp_path, 2, 2, model__backbone=backbone), 2).finish()
    where = " (on process 1 of the 2 that made it together)" if culprit else ""
    assert status["failed"] == {f"p001-{seed}": f"poisoned{where}" for seed in (0, 1)}
    assert (status["status"], status["done"]) == ("failed", ITEMS - 2)
    traces = [path.read_text() for path in (tmp_path / "items").glob("*/error.txt")]
    assert len(traces) == 2
    assert all("in encode" in trace and "RuntimeError: poisoned" in trace for trace in traces)
    assert Workers(arguments(tmp_path, 2, 2), 2).finish()["done"] == ITEMS
    assert_same(made(tmp_path), alone[0])


@pytest.mark.parametrize("victim", [0, 3])
def test_one_killed_ends_all_and_the_same_command_finishes(tmp_path, alone, victim):
    expected, rows = alone
    workers = Workers(arguments(tmp_path, 4, 2), 4)
    assert workers.wait_for_rows(rows // 3)
    os.kill(workers.processes[victim].pid, signal.SIGKILL)
    codes = workers.ended(within=60)
    assert codes == [-9 if rank == victim else 1 for rank in range(4)]
    assert not (tmp_path / "run" / "status.json").exists()
    assert Workers(arguments(tmp_path, 4, 2), 4).finish()["done"] == ITEMS
    assert_same(made(tmp_path), expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_obeyed_by_all_and_the_same_command_finishes(tmp_path, alone, number):
    expected, rows = alone
    workers = Workers(arguments(tmp_path, 2, 2, model__backbone=SLOW), 2)
    assert workers.wait_for_rows(rows // 3)
    # Ctrl-C reaches every process; a scheduler may tell only one.
    for process in workers.processes[0 if number == signal.SIGINT else 1 :]:
        os.kill(process.pid, number)
    status = workers.finish()
    assert (status["status"], status["signal"]) == ("stopped", number)
    assert 0 < len(made(tmp_path)) == status["done"] < ITEMS
    assert Workers(arguments(tmp_path, 2, 2), 2).finish()["done"] == ITEMS
    assert_same(made(tmp_path), expected)


def test_two_runs_of_the_same_items_make_each_once(tmp_path, alone):
    expected, rows = alone
    both = [Workers(arguments(tmp_path, 2, 2, name), 2) for name in ("one", "other")]
    assert [workers.finish()["done"] for workers in both] == [ITEMS, ITEMS]
    assert sum(workers.rows for workers in both) == rows
    assert_same(made(tmp_path), expected)


@pytest.mark.parametrize(("size", "world"), [(0, 4), (-1, 1), (3, 4), (8, 4), (2, 1)])
def test_teams_that_cannot_be_formed_are_refused(size, world):
    with pytest.raises(UserError, match=f"run.window_parallel is {size}: .* which is {world} "):
        check_size(size, world)


@pytest.mark.slow
def test_stops_at_random_moments_never_hang(tmp_path, alone):
    expected, rows = alone
    dice = random.Random(0)
    for _ in range(20):
        workers = Workers(arguments(tmp_path, 4, 2), 4)
        workers.wait_for_rows(dice.randint(1, rows // 6))
        time.sleep(dice.uniform(0, 0.05))
        for process in dice.sample(workers.processes, dice.randint(1, 4)):
            with suppress(ProcessLookupError):  # the first stop has ended it
                os.kill(process.pid, dice.choice([signal.SIGINT, signal.SIGTERM]))
        assert None not in workers.ended(within=60)
        assert made(tmp_path).keys() <= expected.keys()
    assert Workers(arguments(tmp_path, 4, 2), 4).finish()["done"] == ITEMS
    assert_same(made(tmp_path), expected)
