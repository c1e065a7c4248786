"""``miga-bench prune``: what no run names goes, and nothing else."""

import json
import os
import shutil

import pytest
from test_runs import item, video

from miga_bench.cli import main
from miga_bench.harness import prune
from miga_bench.harness.locks import NamedLock
from miga_bench.harness.making import make
from miga_bench.harness.runs import Run
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.store import Store
from miga_bench.harness.video import Watcher


@pytest.fixture
def runs(tmp_path):
    """Two runs that share an item; the second has another one, too."""
    shared, own = item(), item(seed=1)
    store = Store(tmp_path)
    with StopSignals() as stop:
        for one in (shared, own):
            make(store, one, video(one), Watcher(), stop)
    for name, items in (("one", {"p-0": shared}), ("two", {"p-0": shared, "p-1": own})):
        run = Run(tmp_path, name)
        run.acquire()
        run.open({"prompts": {}}, items, {"model": {}}, "cpu")
        run.release()
    return tmp_path, shared.key, own.key


def pruned(capsys, *options):
    assert main(["prune", *map(str, options)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_what_a_removed_run_leaves_is_shown_and_deleted_when_asked_for(runs, capsys):
    root, shared, own = runs
    assert pruned(capsys, root)[0]["items"] == []
    shutil.rmtree(root / "two")
    found, told = pruned(capsys, root)
    assert (found["items"], found["deleted"], found["freed"]) == ([own], [], 0)
    files = [path for path in (root / "items" / own).rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files) > 0
    assert "1 item " in told
    assert "--delete" in told
    assert Store(root).is_done(own), "nothing was asked for"
    found, told = pruned(capsys, root, "--delete")
    assert (found["deleted"], found["freed"]) == ([own], found["bytes"])
    assert "1 deleted" in told
    assert not (root / "items" / own).exists()
    assert Store(root).is_done(shared)
    assert pruned(capsys, root)[0]["items"] == []


def test_an_item_that_is_being_made_stays(runs, capsys):
    root, _shared, own = runs
    shutil.rmtree(root / "two")
    with NamedLock(Store(root).locks / own).held():
        found, told = pruned(capsys, root, "--delete")
    assert (found["deleted"], found["freed"]) == ([], 0)
    assert "makes it" in found["kept"][own]
    assert "1 kept" in told
    assert Store(root).is_done(own)


def test_an_item_that_a_run_names_by_now_stays(runs):
    root, _shared, own = runs
    shutil.move(root / "two", root.parent / "elsewhere")
    found = prune.unnamed_items(root)
    shutil.move(root.parent / "elsewhere", root / "two")
    assert [one.key for one in found] == [own]
    assert prune.delete(root, found, lambda: None) == ([], {own: "a run names it by now"})
    assert Store(root).is_done(own)


def test_what_is_no_item_stays(runs, capsys, tmp_path_factory):
    root, _shared, own = runs
    shutil.rmtree(root / "two")
    others = [root / "items" / name for name in ("notes", "0" * 15, "0123456789ABCDEF")]
    for folder in others:
        folder.mkdir()
    away = tmp_path_factory.mktemp("away")
    (away / "video.mp4").write_bytes(b"mine")
    (root / "items" / ("0" * 16)).symlink_to(away)
    assert pruned(capsys, root, "--delete")[0]["items"] == [own]
    assert all(folder.is_dir() for folder in others)
    assert (away / "video.mp4").read_bytes() == b"mine"
    assert (root / "items" / ".locks").is_dir()


def test_a_run_in_a_folder_of_its_own_names_its_items(runs, capsys):
    """Breaks if runs that were put away below the root lose their videos."""
    root, _, own = runs
    (root / "archive" / "of" / "may").mkdir(parents=True)
    shutil.move(root / "two", root / "archive" / "of" / "may")
    assert pruned(capsys, root, "--delete")[0]["items"] == []
    away = root.parent / "elsewhere"
    shutil.move(root / "archive", away)
    (root / "linked").symlink_to(away)
    (away / "loop").symlink_to(root)
    assert pruned(capsys, root, "--delete")[0]["items"] == []
    assert Store(root).is_done(own)


def test_where_a_run_may_be_that_cannot_be_read_nothing_goes(runs, capsys):
    root, _, own = runs
    away = root.parent / "elsewhere"

    def refused(told):
        assert main(["prune", str(root), "--delete"]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert told in err
        assert "nothing is deleted" in err
        assert Store(root).is_done(own)

    (root / "two" / "run.yaml").rename(root.parent / "run.yaml")
    refused("two has no run.yaml")
    shutil.move(root / "two", away)
    (root / "two").symlink_to(root.parent / "unmounted")
    refused("two is a link that leads nowhere")
    (root / "two").unlink()
    starting = Run(root, "two")
    starting.acquire()
    refused("two is a run that is just starting")
    starting.release()
    assert pruned(capsys, root)[0]["items"] == [own]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_run_of_somebody_elses_may_name_anything(runs, capsys):
    root, _, own = runs
    (root / "two").chmod(0)
    try:
        assert main(["prune", str(root), "--delete"]) == 2
        assert "cannot be looked into" in capsys.readouterr().err
    finally:
        (root / "two").chmod(0o700)
    assert Store(root).is_done(own)


def test_items_that_other_roots_may_share_are_left_alone(runs, capsys):
    root, _, own = runs
    shutil.rmtree(root / "two")
    other = root.parent / "other"
    other.mkdir()
    (other / "items").symlink_to(root / "items")
    assert main(["prune", str(other), "--delete"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert Store(root).is_done(own)


def test_what_cannot_be_deleted_does_not_keep_the_rest(runs, capsys, monkeypatch):
    root, shared, own = runs
    shutil.rmtree(root / "one")
    shutil.rmtree(root / "two")
    remove, errors = shutil.rmtree, {shared: PermissionError(13, "Permission denied")}

    def rmtree(folder):
        if folder.name in errors:
            raise errors[folder.name]
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    found, told = pruned(capsys, root, "--delete")
    assert (found["deleted"], found["kept"]) == ([own], {shared: "permission denied"})
    assert "permission denied" in told
    errors[shared] = FileNotFoundError(2, "No such file")
    assert pruned(capsys, root, "--delete")[0]["kept"] == {shared: "somebody else has deleted it"}


BROKEN = ["", "items: [", "format: 7", "format: 1\nitems: 3", "format: 1\nitems: {p-0: 3}"]


@pytest.mark.parametrize("content", BROKEN)
def test_a_run_that_cannot_be_read_may_name_anything(runs, capsys, content):
    """Breaks if a damaged or newer run.yaml makes its videos look like nobody's."""
    root, _shared, own = runs
    (root / "two" / "run.yaml").write_text(content)
    assert main(["prune", str(root), "--delete"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing is deleted" in err
    assert len(err.splitlines()) == 1
    assert Store(root).is_done(own)


def test_a_folder_without_items_is_refused(tmp_path, capsys):
    assert main(["prune", str(tmp_path)]) == 2
    assert "give the folder above your runs" in capsys.readouterr().err
