"""Items that runs share: what is whole stays whatever happens, and what others make is waited for."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
from run_workers import configuration
from simple_backbone import SimpleBackbone
from test_runs import item, video

from miga_bench.cli import main
from miga_bench.harness import making, writer
from miga_bench.harness import store as store_page
from miga_bench.harness.locks import NamedLock
from miga_bench.harness.making import make, score
from miga_bench.harness.runs import Run
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.harness.store import Store
from miga_bench.harness.video import Watcher

NEVER = SimpleBackbone(poison_at=1)  # makes no video


@pytest.mark.parametrize("times", [1, 99])
def test_a_read_error_costs_no_finished_video(tmp_path, monkeypatch, times):
    """Breaks if a file server that is away for a moment has hours of work deleted."""
    store, key = Store(tmp_path), item().key
    with StopSignals() as stop:
        first = make(store, item(), video(item()), Watcher(), stop)
        path = store.folder(key) / "video.mp4"
        inode, left = path.stat().st_ino, [OSError(errno.EIO, os.strerror(errno.EIO), path)] * times

        def away(file, *how):
            if file == path and left:
                raise left.pop()
            return open(file, *how)

        store_page._HASHED.clear()
        monkeypatch.setattr(store_page, "open", away, raising=False)
        with pytest.raises(OSError, match=r"video.mp4 cannot be read \(Input/output error\): left"):
            make(store, item(), video(item(), NEVER), Watcher(), stop)
        run = Run(tmp_path, "mine")
        run.folder.mkdir()
        assert run.close({"a": item()})["missing"] == ([] if times == 1 else ["a"])
        assert store.damage(key) is None  # nothing is said to be made again
        left.clear()
        assert make(store, item(), video(item(), NEVER), Watcher(), stop) == first
    assert path.stat().st_ino == inode


def test_a_stop_while_a_finished_video_is_hashed_waits_for_its_manifest(tmp_path, monkeypatch):
    """Breaks if the next command deletes a whole video because nothing vouches for it."""
    store, whole = Store(tmp_path), making.facts_of

    def stopped_meanwhile(path):
        os.kill(os.getpid(), 15)
        return whole(path)

    monkeypatch.setattr(making, "facts_of", stopped_meanwhile)
    with StopSignals() as stop, pytest.raises(StopRequested):
        make(store, item(), video(item()), Watcher(), stop)
    assert stop.signal == 15
    assert store.is_done(item().key)


def test_what_another_run_makes_now_is_come_back_to(tmp_path, capsys, monkeypatch):
    """Breaks if two runs of the same videos wait for each other's at every one, and are no faster."""
    whole, order, held = make, [], []

    def noting(store, item, *rest):
        if not held:
            held.append(NamedLock(store.locks / item.key))
            held[0].acquire()
        if len(order) == 2:
            held[0].release()
        manifest = whole(store, item, *rest)
        order.append(item.key)
        return manifest

    monkeypatch.setattr(writer, "make", noting)
    config = configuration(tmp_path, data__seeds=[0], data__limit=3)
    assert main(["predict", "--config", str(config)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["done"] == 3
    assert order[-1] == held[0].path.name
    assert len(set(order)) == 3
    assert err == ""


@pytest.mark.parametrize("work", ["make", "score"])
def test_a_machine_that_went_down_holds_no_item_for_ever(tmp_path, monkeypatch, work):
    """Breaks if a process waits for a lock that a file server never takes back; others write meanwhile."""
    store, now, naps = Store(tmp_path), [0.0], []
    held = NamedLock(store.locks / item().key)
    held.acquire()
    monkeypatch.setattr("miga_bench.harness.locks.started", lambda: "another")
    folder = store.folder(item().key)
    folder.mkdir()

    def sleep(seconds):
        naps.append(seconds)
        now[0] += 600
        if len(naps) <= 20:
            (folder / "passes.jsonl").write_text("{}\n" * len(naps))
            os.utime(folder / "passes.jsonl", (0, len(naps)))

    monkeypatch.setattr(making, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    with StopSignals() as stop:
        tasks = {
            "make": lambda: make(store, item(), video(item(), NEVER), Watcher(), stop),
            "score": lambda: score(store, item(), [], stop),
        }
        with pytest.raises(OSError, match=r"held by process .*for 0:30:00: left"):
            tasks[work]()
    assert len(naps) == 24
    assert [path.name for path in folder.iterdir()] == ["passes.jsonl"]
    held.release()
