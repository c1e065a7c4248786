"""Two and four processes make one video: the same as one makes, each doing its share of the work."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import window_parallel_ranks as ranks
from run_workers import context
from simple_backbone import SimpleBackbone

from miga_bench.errors import FailedError, LostError
from miga_bench.harness import teams
from miga_bench.harness.ranks import PATIENCE, Together, agree, gloo_group
from miga_bench.harness.window_parallel import WindowParallel

# Each pass amplifies float noise; see test_embedded.py.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each process saw, by its number."""
    folder = tmp_path_factory.mktemp("ranks")
    # One process imports and is forked, before it has any thread, into those that work.
    fork = context()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        fork.Process(target=ranks.run, args=(rank, store.port, str(folder)))
        for rank in range(ranks.PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
    try:
        assert [process.exitcode for process in processes] == [0, 0, 0, 9]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks.PROCESSES)]


@pytest.fixture(scope="module")
def alone():
    """Each case's video by one process, and the rows of its calls."""
    backbone = ranks.tiny()
    made = {}
    with torch.inference_mode():
        for name in ranks.CASES:
            with ranks.Watched(backbone) as watched:
                made[name] = ranks.video(backbone, name), watched.rows
    return made


@pytest.mark.parametrize(
    ("size", "name"), [(size, name) for size in (2, 4) for name in ranks.MADE[size]]
)
def test_together_as_alone_and_the_same_on_all(name, size, seen, alone):
    expected, rows = alone[name]
    videos, counts, calls = zip(*(seen[rank][size][name] for rank in range(size)), strict=True)
    torch.testing.assert_close(videos[0], expected, **CLOSE)
    assert all(torch.equal(videos[0], video) for video in videos[1:])
    assert sum(counts) == sum(rows)
    if set(rows) == {1}:  # alone a window at a time, together one each
        assert min(counts) > 0
        return
    # Every call is cut as evenly as it can be.
    assert sum(calls[0]) == sum(rows)
    assert counts == tuple(
        sum(row // size + (rank < row % size) for row in calls[0]) for rank in range(size)
    )
    if name in ranks.WHOLE:
        assert counts == (len(rows), len(rows), 0, 0)[:size], "one guided window is two rows"


@pytest.mark.parametrize("size", [2, 4])
def test_the_same_calls_make_the_same_bits(size, seen, alone):
    name = "one row a call"
    assert torch.equal(seen[0][size][name][0], alone[name][0])


def test_a_team_of_one_is_none_bit_for_bit(seen, alone):
    assert torch.equal(seen[0][1]["miga"][0], alone["miga"][0])


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 9])
def test_any_number_of_rows_with_a_cut(rows, size, seen):
    denoiser, arguments = ranks.odd_rows(rows)
    with torch.inference_mode():
        expected = denoiser(*arguments, cut=2)
        assert not torch.equal(expected, denoiser(*arguments))
    for rank in range(size):
        torch.testing.assert_close(seen[rank][size, rows], expected, rtol=1e-4, atol=1e-5)


def test_a_share_is_what_the_tightest_process_can_take(seen, alone):
    for rank in range(4):
        video, most = seen[rank]["tight"]
        torch.testing.assert_close(video, alone["miga of any batch"][0], **CLOSE)
        assert most == 2, "a guided window is two rows"


def test_one_that_fails_tells_the_others(seen):
    assert seen[1]["fails"] == "ValueError: no more memory"
    for rank in (0, 2, 3):
        assert seen[rank]["fails"].startswith("TeamError: process 1 of the 4 ")
        assert "stopped on an error" in seen[rank]["fails"]


def test_another_seed_is_noticed_by_all(seen):
    for rank in range(4):
        assert "process 2 of the 4 " in seen[rank]["other seed"]
        assert "makes another video than process 0" in seen[rank]["other seed"]
        # whose text another device has encoded is told so
        assert "the kind of device, for the text encoder, too" in seen[rank]["other seed"]


def test_one_that_leaves_early_is_named(seen):
    assert seen[0]["leaves"] == "done"
    for rank in (1, 2, 3):
        assert "process 0 of the 4 " in seen[rank]["leaves"]
        assert "left before the others" in seen[rank]["leaves"]


def test_after_an_error_the_next_video_is_whole(seen, alone):
    for rank in range(4):
        torch.testing.assert_close(seen[rank]["afterwards"], alone["fifo"][0], **CLOSE)


def test_one_that_hangs_is_waited_for_no_longer_than_said(seen):
    for rank in (0, 1, 3):
        assert f"process {rank} of 4 lost another one" in seen[rank]["hangs"]


def test_one_that_is_killed_is_noticed_at_once(seen):
    for rank in (0, 1, 2):
        assert f"process {rank} of 4 lost another one" in seen[rank]["killed"]
        assert seen[rank]["seconds"] < ranks.TIMEOUT / 2


def test_machines_that_do_not_reach_each_other_are_told_what_to_set(monkeypatch):
    """Breaks if a machine whose name leads to itself ends in Gloo's own words."""

    def refuse(*args, **kwargs):
        raise RuntimeError(text)

    text = "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: [127.0.0.1]:1"
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "new_group", refuse)
    for form in (Together, lambda: teams.Teamwork(2), lambda: agree(None, lambda: None)):
        with pytest.raises(FailedError, match="set GLOO_SOCKET_IFNAME on every machine"):
            form()
    text = "Connection closed by peer"
    with pytest.raises(LostError, match="another process of the run is gone"):
        gloo_group(PATIENCE)


def test_the_rows_group_is_at_work_before_memory_is_measured(tmp_path, monkeypatch):
    """Breaks if NCCL takes its memory after a share was fitted into what was free."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        rows, words = dist.new_group([0]), dist.new_group([0])
        groups, gather = [], dist.all_gather
        monkeypatch.setattr(
            dist,
            "all_gather",
            lambda all_, own, group: groups.append(group) or gather(all_, own, group),
        )
        team = WindowParallel(rows, words)
        with team.sharing(SimpleBackbone()):
            assert team.capacity(3) == 3
        assert [group is rows for group in groups] == [True, False, False]
    finally:
        dist.destroy_process_group()
