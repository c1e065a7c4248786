"""``miga-bench prune``: what no run names goes, and nothing else."""

import json
import shutil

import pytest
from test_runs import item, video

from miga_bench.cli import main
from miga_bench.harness import prune
from miga_bench.harness.generate import Watcher
from miga_bench.harness.locks import NamedLock
from miga_bench.harness.making import make
from miga_bench.harness.runs import Run
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.store import Store


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
    assert (found["items"], found["deleted"], found["freed"]) == ([own], 0, 0)
    files = [path for path in (root / "items" / own).rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files) > 0
    assert "1 item " in told
    assert "--delete" in told
    assert Store(root).is_done(own), "nothing was asked for"
    found, told = pruned(capsys, root, "--delete")
    assert (found["deleted"], found["freed"]) == (1, found["bytes"])
    assert "1 deleted" in told
    assert not (root / "items" / own).exists()
    assert Store(root).is_done(shared)
    assert pruned(capsys, root)[0]["items"] == []


def test_an_item_that_is_being_made_stays(runs, capsys):
    root, _shared, own = runs
    shutil.rmtree(root / "two")
    with NamedLock(Store(root).locks / own).held():
        found, told = pruned(capsys, root, "--delete")
    assert (found["deleted"], found["freed"]) == (0, 0)
    assert "1 kept" in told
    assert Store(root).is_done(own)


def test_an_item_that_a_run_names_by_now_stays(runs):
    root, _shared, own = runs
    shutil.move(root / "two", root.parent / "elsewhere")
    found = prune.unnamed_items(root)
    shutil.move(root.parent / "elsewhere", root / "two")
    assert [one.key for one in found] == [own]
    assert prune.delete(root, found, lambda: None) == []
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


@pytest.mark.parametrize("content", ["", "items: [", "format: 7", "format: 1\nitems: 3"])
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
