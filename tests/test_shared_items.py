"""Items that runs share: what is whole stays whatever happens, and what others make is waited for."""

import errno
import os

import pytest
from simple_backbone import SimpleBackbone
from test_runs import item, video

from miga_bench.harness import making
from miga_bench.harness import store as store_page
from miga_bench.harness.making import make
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
