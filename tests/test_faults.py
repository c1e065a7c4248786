"""What breaks outside of us: disks, bits, clocks, signals. What the user sees, what stays, what comes next.

About 12 s. ``tests/README.md`` has all faults with their tests.
"""

import datetime
import json
import os
import random
import signal
import subprocess
import time
import warnings
from contextlib import contextmanager

import pytest
import run_workers
import torch
import yaml
from run_workers import configuration
from simple_backbone import SimpleBackbone
from test_generate import request
from test_runs import item, video

from miga_bench.cli import main
from miga_bench.errors import Notice, gpu_is_lost
from miga_bench.harness import runs
from miga_bench.harness import store as store_page
from miga_bench.harness.generate import generate
from miga_bench.harness.locks import HeldError, NamedLock
from miga_bench.harness.making import make, score
from miga_bench.harness.ranks import Together
from miga_bench.harness.results import read_results
from miga_bench.harness.runs import Run
from miga_bench.harness.scorers import Found
from miga_bench.harness.seals import sealed
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.store import Store
from miga_bench.harness.video import Watcher
from miga_bench.media import count_frames

FEW = {"data__seeds": [0], "data__limit": 2}


def flip(path, dice):
    """Turn over one bit of a file."""
    content = bytearray(path.read_bytes())
    place = dice.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def predict(capsys, config, *options, verb="predict"):
    """Run the command; return its exit code, its JSON, and what it said, line by line."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code = main([verb, "--config", str(config), *options])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An item on disk, and what its manifest says."""
    store = Store(tmp_path_factory.mktemp("store"))
    with StopSignals() as stop:
        make(store, item(), video(item()), Watcher(), stop)
    return store, store.manifest(item().key)


@pytest.mark.parametrize("name", ["manifest.json", "video.mp4", "sheet.png", "passes.jsonl"])
def test_a_flipped_bit_is_never_taken_for_a_finished_video(made, name):
    store, manifest = made
    path, dice = store.folder(item().key) / name, random.Random(name)
    whole = path.read_bytes()
    refused = 0
    for _ in range(60):
        flip(path, dice)
        found = store.manifest(item().key)
        # where a line break became a space, all is as it was
        assert found is None or (name == "manifest.json" and found == manifest)
        refused += found is None
        if found is None:
            assert store.damage(item().key).startswith(name)
        path.write_bytes(whole)
    assert refused > 50
    assert store.manifest(item().key) == manifest
    assert store.damage(item().key) is None


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (dict, "it has no seal that fits"),
        (
            lambda whole: sealed({**whole, "format": 2, "versions": {"miga-bench": "9.1"}}),
            "its format is '2', of miga-bench '9.1'; this version reads 1",
        ),
    ],
)
def test_a_manifest_without_seal_or_of_another_version_vouches_for_nothing(made, written, why):
    store, manifest = made
    path = store.folder(item().key) / "manifest.json"
    whole = path.read_bytes()
    path.write_text(json.dumps(written(manifest)))
    assert store.manifest(item().key) is None
    assert store.damage(item().key) == f"manifest.json cannot be read ({why})"
    path.write_bytes(whole)


def test_a_process_reads_what_it_made_once_whichever_store_asks(tmp_path, monkeypatch):
    """Large runs take minutes to read; what was written anew is read all the same."""
    with StopSignals() as stop:
        manifest = make(Store(tmp_path), item(), video(item()), Watcher(), stop)
    whole, read = store_page.hashlib.file_digest, []
    monkeypatch.setattr(
        store_page.hashlib, "file_digest", lambda *told: (read.append(1), whole(*told))[1]
    )
    assert Store(tmp_path).manifest(item().key)["files"] == manifest["files"]
    assert read == []
    flip(tmp_path / "items" / item().key / "video.mp4", random.Random(3))
    assert Store(tmp_path).manifest(item().key) is None
    assert read == [1]


def test_broken_videos_are_made_again_and_said_in_one_line(tmp_path, capsys):
    config, dice = configuration(tmp_path, **FEW), random.Random(0)
    code, status, _ = predict(capsys, config)
    assert (code, status["done"]) == (0, 2)
    first, second = sorted((tmp_path / "items").glob("[0-9a-f]*"))
    before = {p: p.read_bytes() for f in (first, second) for p in f.glob("*.mp4")}
    stays = (second / "manifest.json").stat().st_mtime_ns
    flip(first / "video.mp4", dice)
    assert [row.status for row in read_results(tmp_path / "run").rows].count("missing") == 1
    code, status, said = predict(capsys, config)
    assert (code, status["done"]) == (0, 2)
    assert len(said) == 1, said
    assert said[0].startswith(
        "miga-bench: 1 finished video is broken and made again; the first is p"
    )
    assert said[0].endswith("video.mp4 is not what was written")
    assert {p: p.read_bytes() for p in before} == before
    assert (second / "manifest.json").stat().st_mtime_ns == stays


def test_broken_scores_are_no_scores(made):
    class Scorer:
        file = "count-1.json"

    store, manifest = made
    sha = manifest["files"]["video.mp4"]["sha256"]
    path, dice = store.folder(item().key) / "scores" / Scorer.file, random.Random(1)
    path.parent.mkdir()
    text = json.dumps(sealed({"video": sha, "scores": {"a": 0.25}, "reasons": {}, "series": {}}))
    for number in range(60):
        path.write_text(text)
        assert store.unscored(item(), [Scorer]) == []
        if number:
            flip(path, dice)
        found = store.scores(item().key, Scorer.file, sha)
        assert found is None or found["scores"] == {"a": 0.25}
    path.write_text("{")
    assert store.unscored(item(), [Scorer]) == [Scorer]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_score(made, value):
    class Scorer:
        file = "odd-1.json"

        def identity(self):
            return {}

        def score(self, video, item):
            series = {"a": [[0, 3, value], [4, 8, 0.5]]}
            return Found({"a": value, "b": 0.5, "c": None}, {"c": "no flow"}, series)

        def scored(self, video):
            pass

    store, manifest = made
    path = store.folder(item().key) / "scores" / Scorer.file
    sha = manifest["files"]["video.mp4"]["sha256"]
    expected = {
        "scores": {"a": None, "b": 0.5, "c": None},
        "reasons": {"c": "no flow", "a": "not finite"},
        "series": {"a": [[0, 3, None], [4, 8, 0.5]]},
    }
    with StopSignals() as stop:
        score(store, item(), [Scorer()], stop)
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert store.scores(item().key, Scorer.file, sha).items() >= expected.items()
    path.unlink()


def test_a_lost_gpu_leaves_the_rest_missing_and_the_status_written(tmp_path, capsys, monkeypatch):
    """Nothing further is begun on it, and what Lightning then cannot clean up costs no status."""
    config = configuration(tmp_path, **{**FEW, "data__limit": 4})
    whole, calls = run_workers.CountingBackbone._denoise, []

    def lost(*inputs):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def losing(self, *inputs):
        calls.append(1)
        return lost() if done_manifests(tmp_path) else whole(self, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(run_workers.CountingBackbone, "_denoise", losing)
        patch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.teardown", lost)
        code, status, said = predict(capsys, config)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which Lightning would have given back
    assert (code, status["status"], status["done"]) == (1, "failed", 1)
    assert (len(status["failed"]), len(status["missing"])) == (1, 2)
    assert said == [
        "note: the GPU of process 0 is lost (CUDA error: an illegal memory access was encountered):"
        " nothing further is begun on it; the same command makes what is missing"
    ]
    code, status, _ = predict(capsys, config)
    assert (code, status["status"], status["done"]) == (0, "done", 4)


def test_too_little_memory_loses_no_gpu():
    assert not gpu_is_lost(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not gpu_is_lost(torch.AcceleratorError("CUDA error: out of memory"))
    assert not gpu_is_lost(RuntimeError("shapes do not match"))
    # the next call may do well
    for passing in ("CUBLAS_STATUS_ALLOC_FAILED", "invalid configuration argument"):
        assert not gpu_is_lost(RuntimeError(f"CUDA error: {passing}"))
    assert gpu_is_lost(Exception("CUDA failure 700: an illegal memory access was encountered"))
    assert gpu_is_lost(RuntimeError("CUDA error: device-side assert triggered"))


@contextmanager
def small_disk(folder, size):
    """Mount a file system of that size, which only root may."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield lambda *options: subprocess.run(
            ["mount", "-o", ",".join(("remount", *options)), folder], check=True
        )
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_an_experiment_on_a_full_disk_stops_clearly_and_goes_on(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "200k") as remount:
        root = tmp_path / "disk" / "runs"
        config = configuration(
            tmp_path,
            model__arms={"one": {}, "two": {"settings": {"zigzag": 3}}},
            run__root=str(root),
        )
        options = ("--tracking.enabled", "false")
        code, status, said = predict(capsys, config, *options, verb="experiment")
        assert (code, status["status"]) == (1, "failed")
        assert 0 < status["done"] < status["items"] == 24
        assert said[0] == (
            f"note: {root} takes no more (No space left on device): nothing further is begun; make"
            " room there, then the same command makes what is missing"
        )
        assert said[1:] == [
            "miga-bench: the report cannot be written (No space left on device): make room, then the"
            " same command writes it"
        ]
        # it ended at once: what was not begun is missing, not failed
        assert len(status["failed"]) <= 1
        assert len(status["missing"]) + len(status["failed"]) == 24 - status["done"]
        whole = {p: p.stat().st_mtime_ns for p in done_manifests(root)}
        assert len(whole) == status["done"]
        remount("size=16m")
        code, status, _ = predict(capsys, config, *options, verb="experiment")
        assert (code, status["status"], status["done"]) == (0, "done", 24)
        assert (root / "run" / "report" / "report.html").exists()
        assert {p: p.stat().st_mtime_ns for p in whole} == whole  # none of them made again


def done_manifests(root):
    found = (root / "items").glob("*/manifest.json")
    return [path for path in found if json.loads(path.read_text())["status"] == "done"]


def test_a_disk_that_may_only_be_read_is_refused_before_work(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "1m") as remount:
        remount("ro")
        config = configuration(tmp_path, run__root=str(tmp_path / "disk" / "runs"))
        code, status, said = predict(capsys, config)
        assert (code, status) == (2, None)
        assert said == [
            f"miga-bench: cannot write in {tmp_path / 'disk'} (Read-only file system): choose another"
            " run.root"
        ]


def test_a_status_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    run = Run(tmp_path, "mine")
    (tmp_path / "mine").mkdir()
    with StopSignals() as stop:
        make(run.store, item(), video(item()), Watcher(), stop)

    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.warns(Notice, match=r"status\.json cannot be written \(No space left"):
        assert run.close({"a": item()})["status"] == "done"


def test_a_run_that_is_stopped_reads_no_video_for_its_status(made, monkeypatch):
    store, _ = made
    run = Run(store.root, "mine")
    run.folder.mkdir()
    monkeypatch.setattr(Store, "_sha256", lambda self, path: pytest.fail("a video was read"))
    status = run.close({"a": item(), "b": item(seed=5)}, signal.SIGTERM)
    assert (status["status"], status["done"], status["missing"]) == ("stopped", 1, ["b"])


def test_a_lock_on_a_full_disk_is_one(tmp_path):
    with small_disk(tmp_path / "disk", "4k") as _:
        (tmp_path / "disk" / "all").write_bytes(bytes(4096))
        lock, other = (NamedLock(tmp_path / "disk" / "lock") for _ in range(2))
        lock.acquire()
        with pytest.raises(HeldError, match="another process"):
            other.acquire()
        lock.release()
        other.acquire()
        other.release()


def test_a_clock_that_jumps_changes_no_duration(tmp_path, monkeypatch):
    class Jumping(datetime.datetime):
        hours = iter([0, -5, 3, -1, 8] * 99)

        @classmethod
        def now(cls, zone=None):
            return super().now(zone) + datetime.timedelta(hours=next(cls.hours))

    hours = iter([0.0, -5e4, 3e4] * 9999)
    real = time.time
    monkeypatch.setattr(runs, "datetime", Jumping)
    monkeypatch.setattr("miga_bench.harness.video.datetime", Jumping)
    monkeypatch.setattr("miga_bench.harness.locks.datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: real() + next(hours))
    began = time.monotonic()
    run = Run(tmp_path, "mine")
    run.acquire()
    with StopSignals() as stop:
        manifest = make(run.store, item(), video(item()), Watcher(), stop)
    status = run.close({"a": item()})
    run.release()
    passed = time.monotonic() - began + 0.1
    assert 0 <= status["seconds"] <= passed
    assert 0 < manifest["timings"]["total_seconds"] <= passed
    assert all(0 <= seconds <= passed for seconds in manifest["timings"]["seconds"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_ends_the_video_with_its_place(tmp_path, value):
    backbone = SimpleBackbone()
    clean, calls = backbone.denoiser, iter(range(9999))

    def poisoned(*inputs):
        out = clean(*inputs)
        if next(calls) == 300:
            out[0, 0, 0, 0, 0] = value
        return out

    backbone.denoiser = poisoned
    result = generate(request(tmp_path, frames=400), backbone=backbone)
    assert result.status == "failed"
    assert "returned NaN or infinity at latent frame" in str(result.error)
    assert 0 < result.frames == count_frames(tmp_path / "out.mp4") < 400
    assert json.loads((tmp_path / "out.json").read_text())["status"] == "failed"


def test_a_run_that_is_asked_to_stop_says_so_and_goes_on(tmp_path, capsys, monkeypatch):
    config = configuration(tmp_path, **FEW)
    whole, stops = run_workers.CountingBackbone._denoise, iter([signal.SIGTERM])

    def stopping(self, *inputs):
        if done_manifests(tmp_path) and next(stops, None):  # in the second video
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, *inputs)

    monkeypatch.setattr(run_workers.CountingBackbone, "_denoise", stopping)
    code, status, said = predict(capsys, config)
    assert (code, status["status"], status["signal"]) == (143, "stopped", 15)
    assert said[-1] == f"miga-bench: stopped: {tmp_path / 'run'} has {status['done']} of 2 videos"
    (folder,) = [p.parent for p in done_manifests(tmp_path)]
    before = (folder / "manifest.json").stat().st_mtime_ns
    code, status, _ = predict(capsys, config)
    assert (code, status["status"], status["done"]) == (0, "done", 2)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("moment", ["the disk is looked at", "others are waited for"])
def test_a_stop_is_heard_from_the_first_look_to_the_last(tmp_path, capsys, monkeypatch, moment):
    """Lightning would swallow a SIGTERM at either moment."""
    if moment == "the disk is looked at":
        whole = Run.open
        monkeypatch.setattr(Run, "open", lambda *given: stop_then(whole, *given))
    else:
        monkeypatch.setattr(Together, "wait", lambda *_: stop_then(time.sleep, 5))
    code, status, said = predict(capsys, configuration(tmp_path, **FEW))
    made = len(done_manifests(tmp_path))
    assert (code, made) == (143, 0 if status is None else 2)
    if status is None:
        assert said[-1] == "miga-bench: stopped: the same command goes on"
    else:
        assert (status["status"], status["signal"]) == ("stopped", 15)
    assert NamedLock(tmp_path / "run" / ".lock").holder() is None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def stop_then(go_on, *given):
    os.kill(os.getpid(), signal.SIGTERM)
    return go_on(*given)


def test_a_rank_that_never_comes_is_waited_for_so_long_and_said_in_one_line(tmp_path):
    """Two processes are said, one is started."""
    config = configuration(tmp_path, trainer__devices=2, trainer__strategy="ddp")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = tmp_path / "said"
    task = (str(config), run_workers.torchrun(0, 2, store.port), str(said), 2.0)
    process = run_workers.context().Process(target=run_workers.command, args=task)
    process.start()
    process.join(run_workers.WAIT)
    assert process.exitcode == 1
    (line,) = [one for one in said.read_text().splitlines() if one.startswith("miga-bench")]
    assert "not all of the 2 processes of the run came within 2 s" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", [0, 1, "all", "odd"])
def test_what_ranks_find_wrong_is_said_once_by_rank_0(tmp_path, lacking):
    """Whether rank 0, another or all of them: one line, exit code 2 everywhere, nothing written."""
    wrong = {
        "model__metrics": [
            {"class_path": "run_workers.LackingScorer", "init_args": {"lacking_rank": lacking}}
        ]
    }
    if lacking == "all":  # a text that begins in the same latent as another
        wrong = {"data__prompts": [{"prompt": "a", "then": {2: "b", 3: "c"}}]}
    if lacking == "odd":  # weights of a process of its own
        odd = {"class_path": "run_workers.CountingBackbone", "init_args": {"odd_rank": 1}}
        wrong = {"model__backbone": odd}
    config = configuration(tmp_path, trainer__devices=2, trainer__strategy="ddp", **wrong)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for number in range(2):
        environment = run_workers.torchrun(number, 2, store.port)
        task = (str(config), environment, str(tmp_path / f"{number}"))
        processes.append(run_workers.context().Process(target=run_workers.command, args=task))
        processes[-1].start()
    for process in processes:
        process.join(run_workers.WAIT)
    assert [process.exitcode for process in processes] == [2, 2]
    said = [(tmp_path / f"{n}").read_text().splitlines() for n in range(2)]
    lines = [[line for line in each if line.startswith("miga-bench")] for each in said]
    where = "process 1: " if lacking == 1 else ""
    expected = f"miga-bench: {where}networks are not there: fetch them"
    assert [len(each) for each in lines] == [1, 0]
    expected = {
        "all": "miga-bench: prompt p001",
        "odd": "miga-bench: process 1: this process would make different videos from process 0",
    }.get(lacking, expected)
    assert lines[0][0].startswith(expected)
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_run_yaml_with_a_flipped_bit_is_a_good_one_or_one_line(tmp_path, capsys):
    config = configuration(tmp_path, **FEW)
    assert predict(capsys, config)[0] == 0
    path, dice = tmp_path / "run" / "run.yaml", random.Random(2)
    whole = path.read_bytes()
    made_of = yaml.safe_load(whole)["made_of"]
    outcomes = set()
    for _ in range(60):
        flip(path, dice)
        run = Run(tmp_path, "run")
        run.acquire()
        try:
            run._compare(path, made_of)
            outcomes.add("good")
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is good
            outcomes.add("refused")
        finally:
            run.release()
            path.write_bytes(whole)
    assert outcomes == {"good", "refused"}
