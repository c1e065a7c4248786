"""The parts of a run: items, the store, the books, dealing out, lists of prompts."""

import errno
import json
import os
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from simple_backbone import SimpleBackbone

from miga_bench.errors import Notice, UserError
from miga_bench.harness.deal import deal
from miga_bench.harness.items import Item
from miga_bench.harness.locks import HeldError, NamedLock
from miga_bench.harness.making import make
from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.provenance import git_state
from miga_bench.harness.request import PromptAt
from miga_bench.harness.runs import Run, differences
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.harness.store import Store
from miga_bench.harness.video import Video, Watcher
from miga_bench.harness.writer import RunWriter
from miga_bench.sampling import METHODS, resolve

SMALL = {"steps": "8", "zigzag": "2", "guidance_frames": "2", "stride": "3"} | {
    "stage2_steps": "2",
    "renoise": "0",
    "reflection": "off",
    "reflection_threshold": "0.01",
}


def item(**changes):
    settings = asdict(resolve("miga", SimpleBackbone(), None, SMALL))
    values = {
        "backbone": "tiny-simple",
        "weights_hash": None,
        "precision": "32-true",
        "method": "miga",
        "settings": settings,
        "prompts": (PromptAt("a red circle"),),
        "negative_prompt": "",
        "seed": 0,
        "frames": 9,
        "height": 16,
        "width": 16,
    }
    return Item(**(values | changes))


def video(wanted, backbone=None):
    backbone = backbone or SimpleBackbone()
    sampler = METHODS["miga"](resolve("miga", backbone, None, wanted.settings))
    return Video(wanted.request(), backbone, sampler)


def test_keys_are_those_of_other_machines_and_days():
    """Breaks if a run that is half made would be begun anew by a change that means nothing to its videos."""
    assert item().key == "8d32aabffb4a31ae"


def test_a_key_is_the_content():
    assert item().key == Item.of(json.loads(json.dumps(item().spec()))).key
    assert len(item().key) == 16
    shuffled = dict(reversed(item().settings.items()))
    assert item(settings=shuffled).key == item().key
    changed = [
        {"seed": 1},
        {"frames": 10},
        {"prompts": (PromptAt("a red circle"), PromptAt("a", 5))},
        {"settings": {**item().settings, "zigzag": 3}},
        {"precision": "bf16-true"},
        {"lossless": True},
        {"weights_hash": "0"},
        {"configuration_hash": "0"},
    ]
    assert len({item().key, *(item(**change).key for change in changed)}) == 1 + len(changed)


def test_a_request_asks_for_what_the_item_says():
    """Breaks if something that decides the video is in its key, but not in its making."""
    texts = (PromptAt("a red circle"), PromptAt("a blue one", 5))
    one = item(prompts=texts, negative_prompt="blurry", seed=3, frames=17, lossless=True)
    told = vars(one.request())
    for name in ("backbone", "method", "prompts", "negative_prompt", "seed", "frames", "lossless"):
        assert told[name] == getattr(one, name), name


def test_the_store_makes_once_and_says_what_a_pass_did(tmp_path):
    store = Store(tmp_path)
    with StopSignals() as stop:
        first = make(store, item(), video(item()), Watcher(), stop)
        never = video(item(), SimpleBackbone(poison_at=1))
        assert make(store, item(), never, Watcher(), stop) == first
    assert store.is_done(item().key)
    passes = [
        json.loads(line)
        for line in (store.folder(item().key) / "passes.jsonl").read_text().splitlines()
    ]
    assert len(passes) == sum(first["cost"]["passes"].values())
    assert {"stage", "levels", "similarity", "triggered", "accepted", "windows"} <= set(passes[0])
    assert passes[-1]["windows"] == first["cost"]["windows"]
    assert first["timings"]["git"] == git_state()


def test_a_file_that_was_cut_is_made_again(tmp_path):
    store, key = Store(tmp_path), item().key
    with StopSignals() as stop:
        first = make(store, item(), video(item()), Watcher(), stop)
        os.truncate(store.folder(key) / "video.mp4", 100)
        assert not store.is_done(key)
        second = make(store, item(), video(item()), Watcher(), stop)
    assert first["files"] == second["files"]
    assert store.is_done(key)


def test_a_failure_keeps_its_traceback_and_is_tried_again(tmp_path):
    store, key = Store(tmp_path), item().key
    with StopSignals() as stop:
        bad = video(item(), SimpleBackbone(poison_at=2))
        failed = make(store, item(), bad, Watcher(), stop)
        assert failed["status"] == "failed"
        assert "NaN" in failed["error"]
        assert "Traceback" in (store.folder(key) / "error.txt").read_text()
        assert not store.is_done(key)
        assert make(store, item(), video(item()), Watcher(), stop)["status"] == "done"
    assert not (store.folder(key) / "error.txt").exists()


def test_a_stop_leaves_unfinished_work(tmp_path):
    class StopSoon(Watcher):
        def wrote(self, frames, total):
            os.kill(os.getpid(), 15)

    store = Store(tmp_path)
    with StopSignals() as stop, pytest.raises(StopRequested):
        make(store, item(), video(item()), StopSoon(), stop)
    assert stop.signal == 15
    assert store.manifest(item().key) is None


def test_a_stop_while_the_sheet_is_drawn_ends_the_run_after_the_video(tmp_path, monkeypatch):
    """Breaks if such a stop is lost: the run would go on, deaf to all that follow, until it is killed."""
    saved = Video._save_sheet

    def stopped_meanwhile(self, *args):
        os.kill(os.getpid(), 15)
        saved(self, *args)

    monkeypatch.setattr(Video, "_save_sheet", stopped_meanwhile)
    store = Store(tmp_path)
    with StopSignals() as stop, pytest.raises(StopRequested):
        make(store, item(), video(item()), Watcher(), stop)
    assert stop.signal == 15
    assert store.is_done(item().key)  # it was whole


def test_a_lock_says_who_has_it(tmp_path):
    one, two = NamedLock(tmp_path / "lock"), NamedLock(tmp_path / "lock")
    one.acquire()
    with pytest.raises(HeldError, match=f"process {os.getpid()} on "):
        two.acquire()
    one.release()
    two.acquire()
    two.release()


def open_run(tmp_path, made_of, **changes):
    run = Run(tmp_path, "mine")
    run.acquire()
    try:
        return run.open(made_of, {"p001-0": item(**changes)}, {"model": {}}, "cpu")
    finally:
        run.release()


def test_a_run_keeps_the_configuration_that_was_last_asked_for(tmp_path):
    """Breaks if a report names scorers, a baseline or a title that its run was not asked for."""
    run, made_of = Run(tmp_path, "mine"), {"model": {"zigzag": 7}}
    path = tmp_path / "mine" / "run.yaml"
    run.acquire()
    run.open(made_of, {"p001-0": item()}, {"run": {"about": {"baseline": "fifo"}}}, "cpu")
    first = yaml.safe_load(path.read_text())
    run.open(made_of, {"p001-0": item()}, {"run": {"about": {"baseline": "miga"}}}, "cpu")
    run.release()
    second = yaml.safe_load(path.read_text())
    assert second == {**first, "configuration": {"run": {"about": {"baseline": "miga"}}}}


def test_a_run_says_what_it_is_made_of_and_refuses_other_values(tmp_path):
    assert open_run(tmp_path, {"model": {"zigzag": 7}}) == ["p001-0"]
    document = yaml.safe_load((tmp_path / "mine" / "run.yaml").read_text())
    assert document["items"] == {"p001-0": item().key}
    assert {"git", "versions", "hardware"} <= set(document["provenance"])
    assert open_run(tmp_path, {"model": {"zigzag": 7}}) == ["p001-0"]
    with pytest.raises(UserError, match=r"then -> now: model.zigzag 7 -> 6\."):
        open_run(tmp_path, {"model": {"zigzag": 6}})


def test_two_writers_of_a_run_are_refused(tmp_path):
    one, two = Run(tmp_path, "mine"), Run(tmp_path, "mine")
    one.acquire()
    with pytest.raises(UserError, match=f"being written by process {os.getpid()} on .*, since"):
        two.acquire()
    one.release()


def test_a_lock_held_on_another_machine_is_waited_for(tmp_path, monkeypatch):
    """Of a machine that went down, a file server lets go late; a requeued job waits."""
    held, run = NamedLock(tmp_path / "mine" / ".lock"), Run(tmp_path, "mine")
    held.acquire()
    monkeypatch.setattr("miga_bench.harness.locks.started", lambda: "another")
    tries = []

    def sleep(seconds):
        tries.append(seconds)
        if len(tries) == 3:
            held.release()

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.warns(Notice, match="is held by process .*: waiting for 180 s") as told:
        run.acquire()
    assert (len(tries), len(told)) == (3, 1)
    run.release()
    monkeypatch.undo()
    held.acquire()
    monkeypatch.setattr("miga_bench.harness.locks.started", lambda: "another")
    monkeypatch.setattr("miga_bench.harness.runs.PATIENCE", -1.0)
    with pytest.raises(UserError, match="being written by process"):
        run.acquire()
    held.release()


@pytest.mark.parametrize(
    ("starts", "hosts", "elsewhere"),
    [
        (("a", "a"), ("laptop", "laptop.office"), False),  # the network gave it another name
        (("a", "b"), ("node", "node"), True),  # restarted: a file server may hold the lock still
        ((None, None), ("node", "node"), False),
        ((None, "b"), ("node", "other"), True),
    ],
)
def test_a_machine_is_known_by_its_start_and_else_by_its_name(
    tmp_path, monkeypatch, starts, hosts, elsewhere
):
    one, two = NamedLock(tmp_path / "lock"), NamedLock(tmp_path / "lock")
    places = zip(starts, hosts, strict=True)

    def move():
        start, host = next(places)
        monkeypatch.setattr("miga_bench.harness.locks.started", lambda: start)
        monkeypatch.setattr("socket.gethostname", lambda: host)

    move()
    one.acquire()
    move()
    with pytest.raises(HeldError, match=f"process {os.getpid()} on {hosts[0]}, since") as held:
        two.acquire()
    assert held.value.elsewhere is elsewhere
    one.release()


def test_a_disk_without_links_is_told_once_with_where_the_videos_are(tmp_path, monkeypatch):
    """Breaks if a run on an external disk ends well and its videos are nowhere to be found."""

    def unknown(link, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    run = Run(tmp_path, "mine")
    run.link("first", item())
    with warnings.catch_warnings():  # one that is there is nothing to tell
        warnings.simplefilter("error")
        run.link("first", item())
    monkeypatch.setattr(Path, "symlink_to", unknown)
    with pytest.warns(Notice) as told:
        run.link("second", item())
    assert "second.mp4 cannot be made (Operation not permitted)" in str(told[0].message)
    assert str(run.store.folder(item().key) / "video.mp4") in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.link("third", item())


def test_a_file_system_without_locks_is_refused_before_work(tmp_path, monkeypatch):
    def unknown(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unknown)
    rule = rf"{tmp_path} takes no locks \(No locks available\), .* or choose another run\.root"
    with pytest.raises(UserError, match=rule):
        Run(tmp_path, "mine")


@pytest.mark.parametrize("closed", ["items", "items/.locks"])
def test_items_that_only_another_user_may_write_are_refused_before_work(
    tmp_path, monkeypatch, closed
):
    (tmp_path / "items" / ".locks").mkdir(parents=True, mode=0o755)
    whole = tempfile.TemporaryFile

    def only_elsewhere(dir):
        if dir == tmp_path / closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", only_elsewhere)
    rule = rf"cannot write in {tmp_path / closed} \(Permission denied; drwxr-xr-x, of user \d+\)"
    with pytest.raises(UserError, match=rule):
        Run(tmp_path, "mine")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something that is no run"):
        Run(tmp_path, "mine").acquire()


@pytest.mark.parametrize("name", ["items", "../up", "a/b", "", ".hidden", "x" * 81])
def test_names_of_runs(tmp_path, name):
    with pytest.raises(UserError, match=r"run\.name"):
        Run(tmp_path, name)


@pytest.mark.parametrize(
    ("allowed", "status"),
    [(True, "failed"), (False, "done"), (0.5, "done"), (0.4, "failed")],
)
def test_how_many_failures_fail_a_run(tmp_path, allowed, status):
    run = Run(tmp_path, "mine", allowed)
    items = {"a": item(), "b": item(seed=1)}
    (tmp_path / "mine").mkdir()
    with StopSignals() as stop:
        make(run.store, items["a"], video(items["a"]), Watcher(), stop)
        make(run.store, items["b"], video(items["b"], SimpleBackbone(poison_at=1)), Watcher(), stop)
    closed = run.close(items)
    assert (closed["status"], closed["done"], list(closed["failed"])) == (status, 1, ["b"])
    assert json.loads((tmp_path / "mine" / "status.json").read_text()) == closed


def test_what_another_process_finished_is_waited_for_until_it_is_seen(tmp_path, monkeypatch):
    """A file server may show a file a minute late."""
    run, waits = Run(tmp_path, "mine"), []

    def arrive(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            with StopSignals() as stop:
                make(run.store, item(), video(item()), Watcher(), stop)

    monkeypatch.setattr(time, "sleep", arrive)
    run.wait_for([], [])
    assert waits == []
    run.wait_for([item()], [])
    assert len(waits) == 2
    monkeypatch.setattr("miga_bench.harness.runs.LATE", -1.0)
    run.wait_for([item(seed=99)], [])
    assert len(waits) == 2


def test_rank_0_waits_for_what_the_others_say_they_finished(tmp_path, monkeypatch):
    writer, waited = RunWriter("mine", str(tmp_path)), []
    (tmp_path / "mine").mkdir()
    own, theirs = item(), item(seed=1)
    writer._items, writer._names = {"a": own, "b": theirs}, {own.key: "a", theirs.key: "b"}
    writer._whole = {own.key}
    everybody = {own.key, theirs.key}
    writer._together = SimpleNamespace(wait=lambda _: None, gather=lambda mine: mine | everybody)
    monkeypatch.setattr(writer.run, "wait_for", lambda items, scorers: waited.extend(items))
    writer.teardown(SimpleNamespace(is_global_zero=True), None, "predict")
    assert waited == [theirs]
    assert writer.status is not None


def test_differences_name_the_place():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c 2 -> (absent)",
        "a.d (absent) -> 3",
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_work_is_dealt_once_longest_first_and_evenly(ranks):
    costs = [5, 1, 9, 3, 3, 7, 2]
    hands = deal(costs, ranks)
    assert sorted(piece for hand in hands for piece in hand) == list(range(len(costs)))
    assert all(
        [costs[k] for k in hand] == sorted((costs[k] for k in hand), reverse=True) for hand in hands
    )
    loads = [sum(costs[k] for k in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(costs)


def test_the_rank_with_the_least_work_gets_the_next_piece():
    """Breaks if one process gets all the long videos while another waits."""
    assert deal([5, 1, 9, 3, 3, 7, 2], 2) == [[2, 3, 4], [5, 0, 6, 1]]
    assert deal([8, 2, 2, 2, 2], 2) == [[0], [1, 2, 3, 4]]


def test_work_of_no_known_cost_is_spread():
    """Breaks if a resumed run that has only to score leaves that to one process."""
    assert sorted(map(len, deal([0] * 8, 4))) == [2, 2, 2, 2]
    assert sorted(map(len, deal([7, 0, 0, 0, 0], 3))) == [1, 2, 2]


def test_prompts_from_every_kind_of_file(tmp_path):
    text = "# circles\none\n\n#\r\n two \r\n#3 wins\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('"one"\n{"prompt": "two", "then": {"9": "three"}}\n')
    (tmp_path / "a.yaml").write_text("- one\n- {id: last, prompt: two, seeds: [4], frames: 5}\n")
    text, lines, listed = (read_wishes(str(tmp_path / f"a.{k}")) for k in ("txt", "jsonl", "yaml"))
    texts = [("p001", "one"), ("p002", "two"), ("p003", "#3 wins")]
    assert [(w.id, w.prompts[0].text) for w in text] == texts
    assert lines[1].prompts == (PromptAt("two"), PromptAt("three", 9))
    assert (listed[1].id, listed[1].seeds, listed[1].frames) == ("last", (4,), 5)


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ([], "at least one"),
        (["a", "a"], "entries 1 and 2 are the same prompt"),
        (["a", ""], "entry 2: the prompt is empty"),
        (["a\x07b"], r"control character U\+0007"),
        (["a\u202eb"], r"control character U\+202E"),  # shows a reader other words
        ([{"prompt": "a", "id": "../up"}], "ids name files"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "X"}], "have the id 'X'"),
        ([{"prompt": "a", "promt": "b"}], "did you mean prompt"),
        ([{"prompt": "a", "seeds": [1, 1]}], "a seed is in it twice"),
        ([{"prompt": "a", "frames": 0}], "at least 1 frame"),
        ([{"prompt": "a", "then": {"soon": "b"}}], "mapping of frames to texts"),
        (
            [{"prompt": "a", "then": {7: "b"}, "frames": 6}],
            "entry 1: then 7:... begins after the last of 6",
        ),
        ([3], "a text is wanted"),
        ([{"prompt": "a", "dimensions": "dynamic_degree"}], "a list of VBench's is wanted"),
        ([{"prompt": "a", "dimensions": []}], "leave it out for all"),
        ([{"prompt": "a", "dimensions": ["dynamic"]}], "'dynamic': .*known: aesthetic_quality"),
        ([{"prompt": "a", "dimensions": [["x"]]}], "entry 1 has the dimension"),
    ],
)
def test_prompts_are_checked(entries, rule):
    with pytest.raises(UserError, match=rule):
        read_wishes(entries)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b"{", "is not JSONL"),
        ("a.yaml", b"a: 1", "a list of prompts is wanted"),
        ("a.csv", b"", "give a list of prompts, a file"),
    ],
)
def test_prompt_files_are_checked(tmp_path, name, content, rule):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rule):
        read_wishes(str(tmp_path / name))


def test_a_missing_prompt_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.txt"):
        read_wishes(str(tmp_path / "none.txt"))
