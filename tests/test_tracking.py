"""Runs in MLflow: what is logged, that nothing is logged twice, and that broken servers cost no video."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient
from mlflow_stores import add_score, broken_server, make_run, mlflow_server, mortal
from ports import free_port
from run_workers import CountingBackbone, configuration

from miga_bench.cli import main
from miga_bench.errors import UserError
from miga_bench.harness import store
from miga_bench.harness.results import read_results
from miga_bench.harness.tracking import worker
from miga_bench.harness.tracking.callback import Tracking
from miga_bench.harness.tracking.facts import MOST_BINS, Curve, facts, names
from miga_bench.harness.tracking.log import RunLog
from miga_bench.harness.tracking.process import Target
from miga_bench.harness.tracking.uri import shown
from miga_bench.harness.tracking.worker import in_one_line

ERROR = b"HTTP/1.1 %s\r\nContent-Length: 4\r\nConnection: close\r\n\r\nsee?"


@pytest.fixture(autouse=True)
def no_server_of_the_users(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """One store for all tests: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(uri).search_experiments(max_results=1)
    return uri


@pytest.fixture(scope="session")
def server(tmp_path_factory, database):
    """A real server on the same store."""
    with mlflow_server(tmp_path_factory.mktemp("server"), database) as uri:
        yield uri


def told(folder, uri, experiment, **options):
    target = Target(folder, uri, experiment, **options)
    return RunLog(target).write()


def runs_of(uri, experiment):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id])


def artifacts(client, run_id, path=None):
    found = client.list_artifacts(run_id, path)
    below = [
        name for entry in found if entry.is_dir for name in artifacts(client, run_id, entry.path)
    ]
    return below + [entry.path for entry in found if not entry.is_dir]


def check_logged(uri, ids):
    client = MlflowClient(uri)
    parent = client.get_run(ids["run_id"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "parts")
    note = parent.data.tags["mlflow.note.content"]
    assert "Which part?" in note
    assert "| subject consistency tiny | 0.51 +- 0.01 | 0.61 +- 0.01 |" in note
    assert "| nfe per frame | 2 | 2 |" in note
    assert all(run_id in note for run_id in ids["arms"].values())  # the link to compare them
    assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert "mlflow.user" not in parent.data.tags
    assert parent.data.tags["weights_hash"] == "abc"
    assert parent.data.tags["hardware.cores"] == "2"
    assert json.loads(parent.data.tags["scorer.1"]) == {"networks": "tiny", "scorer": "suite"}
    assert {"run.yaml", "scores.json", "plots/drift.png"} <= set(artifacts(client, ids["run_id"]))
    child = client.get_run(ids["arms"]["searched"])
    assert child.data.tags["mlflow.parentRunId"] == ids["run_id"]
    assert child.data.params["zigzag"] == "2"
    metrics = child.data.metrics
    assert metrics["scores/subject_consistency_tiny"] == pytest.approx(0.61)
    assert metrics["scores_standard_error/subject_consistency_tiny"] == pytest.approx(0.01)
    assert metrics["cost/nfe_per_frame"] == 2
    assert metrics["reflection/accepted_per_trigger"] == 1
    assert metrics["reflection/search_share_of_windows"] == 0.5
    curve = client.get_metric_history(child.info.run_id, "drift/subject_consistency_tiny")
    assert [(m.step, round(m.value, 3)) for m in curve] == [(1, 0.61), (6, 0.51)]
    files = artifacts(client, child.info.run_id)
    assert {"videos/p0-0.mp4", "sheets/p1-0.png", "plots/reflection.png", "scores.json"} <= set(
        files
    )


def test_a_run_is_a_parent_and_its_arms_are_children(tmp_path, database):
    ids = told(make_run(tmp_path), database, "whole")
    check_logged(database, ids)
    assert ids["logged"] == ["plain", "searched"]
    assert [run.info.run_name for run in runs_of(database, "whole")] == [
        "plain",
        "searched",
        "parts",
    ]


def test_telling_again_changes_nothing(tmp_path, database):
    folder = make_run(tmp_path)
    ids = told(folder, database, "again")
    assert told(folder, database, "again") == {**ids, "logged": []}
    (folder / "tracking.json").unlink()  # tags find them, too
    assert told(folder, database, "again") == {**ids, "logged": []}
    assert len(runs_of(database, "again")) == 3


def test_news_of_an_arm_replace_it_and_keep_the_users_tags(tmp_path, database):
    folder = make_run(tmp_path)
    before = told(folder, database, "news")
    client = MlflowClient(database)
    client.set_tag(before["arms"]["plain"], "verdict", "good")
    add_score(tmp_path / "items" / "partsplainp0".ljust(16, "0"), "subject_consistency[tiny]", 0.7)
    after = told(folder, database, "news")
    assert (after["logged"], after["run_id"]) == (["plain"], before["run_id"])
    run = client.get_run(after["arms"]["plain"])
    assert run.data.tags["verdict"] == "good"
    assert run.data.metrics["scores/subject_consistency_tiny"] == pytest.approx(0.61)
    assert len(client.get_metric_history(run.info.run_id, "drift/subject_consistency_tiny")) == 2
    assert len(runs_of(database, "news")) == 3


def test_a_scorer_that_scores_no_longer_leaves_no_tag(tmp_path, database):
    folder = make_run(tmp_path)
    before = told(folder, database, "fewer")
    client = MlflowClient(database)
    for run_id in (before["run_id"], before["arms"]["plain"]):
        client.set_tag(run_id, "verdict", "good")
    document = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump({**document, "scorers": {}}, sort_keys=False))
    after = told(folder, database, "fewer")
    assert after["run_id"] == before["run_id"]
    for run_id in (after["run_id"], after["arms"]["plain"]):
        tags = client.get_run(run_id).data.tags
        assert (tags.get("scorer.1"), tags["verdict"], tags["weights_hash"]) == (
            None,
            "good",
            "abc",
        )


def test_a_run_whose_videos_are_gone_is_not_told_as_whole(tmp_path, database):
    folder = make_run(tmp_path)
    client = MlflowClient(database)
    (tmp_path / "items" / "partsplainp0".ljust(16, "0") / "manifest.json").unlink()
    ids = told(folder, database, "gone")
    told_of = (ids["run_id"], ids["arms"]["plain"], ids["arms"]["searched"])
    states = [client.get_run(run_id).info.status for run_id in told_of]
    assert states == ["KILLED", "KILLED", "FINISHED"]


def test_a_run_that_was_copied_without_its_items_says_what_to_copy(tmp_path, capsys, database):
    """Breaks if arms that MLflow knows whole are told as killed, or a report asks to make the run again."""
    folder = make_run(tmp_path)
    (folder / "videos" / "p0-0.mp4").symlink_to("../../items/partsplainp00000/video.mp4")
    copy = shutil.copytree(folder, tmp_path / "copy" / "parts", symlinks=True)
    rule = f"copy the folder items of the run's root to {copy.parent}, too"
    with pytest.raises(UserError, match=re.escape(rule)):
        told(copy, database, "copied")
    assert MlflowClient(database).get_experiment_by_name("copied") is None
    assert main(["report", str(copy)]) == 2
    assert rule in capsys.readouterr().err
    shutil.copytree(tmp_path / "items", copy.parent / "items")
    assert told(copy, database, "copied")["logged"] == ["plain", "searched"]


def test_what_was_deleted_comes_back(tmp_path, database):
    folder = make_run(tmp_path)
    before = told(folder, database, "deleted")
    client = MlflowClient(database)
    client.delete_run(before["run_id"])
    client.delete_run(before["arms"]["plain"])
    after = told(folder, database, "deleted")
    check_logged(database, after)
    assert after["logged"] == ["plain"]
    assert len(runs_of(database, "deleted")) == 3


def test_videos_may_stay_where_they_are(tmp_path, database, monkeypatch):
    folder = make_run(tmp_path)
    client = MlflowClient(database)
    ids = told(folder, database, "without", videos=False)
    files = artifacts(client, ids["arms"]["plain"])
    assert "sheets/p0-0.png" in files
    assert not any(name.startswith("videos") for name in files)
    ids = told(folder, database, "capped", videos_mib=0)
    assert "videos/left_out.txt" in artifacts(client, ids["arms"]["plain"])
    monkeypatch.setattr("miga_bench.harness.tracking.log.MOST_SHEETS", 5)  # a sheet has 5 bytes
    ids = told(folder, database, "small", videos=False)
    files = artifacts(client, ids["arms"]["plain"])
    assert {"sheets/p0-0.png", "sheets/left_out.txt"} <= set(files)
    assert "sheets/p1-0.png" not in files


def test_a_stopped_run_is_killed_and_a_running_one_runs(tmp_path, database, monkeypatch):
    folder = make_run(tmp_path)
    (folder / "status.json").unlink()
    client = MlflowClient(database)
    log = RunLog(Target(folder, database, "stopped"))
    assert client.get_run(log.begin()).info.status == "RUNNING"
    log.progress()
    with monkeypatch.context() as patch:  # what was seen is not looked for again
        patch.setattr("miga_bench.harness.store.Store.read_unchecked", None)
        log.progress()
    ids = told(folder, database, "stopped")
    run = client.get_run(ids["run_id"])
    assert (run.info.status, run.data.metrics["videos/done"]) == ("KILLED", 4)


def test_a_run_that_is_stopped_is_only_marked_and_told_by_a_replay(tmp_path, database, monkeypatch):
    folder = make_run(tmp_path)
    client = MlflowClient(database)
    log = RunLog(Target(folder, database, "seconds left"))
    run_id = log.begin()
    monkeypatch.setattr(RunLog, "prepare", lambda self: pytest.fail("the videos were read"))
    word = log.stop()
    assert (word["run_id"], word["logged"], word["arms"]) == (run_id, [], {})
    assert client.get_run(run_id).info.status == "KILLED"
    monkeypatch.undo()
    again = told(folder, database, "seconds left")
    assert (again["run_id"], again["logged"]) == (run_id, ["plain", "searched"])
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_stop_makes_no_second_look_at_the_run(tmp_path, monkeypatch):
    """Tracking passes the stop on, and begins nothing if nothing was begun."""
    words = []

    class Process:
        def finish(self, status):
            words.append(status)
            return {"event": "done", "logged": []}

    writer = SimpleNamespace(run=SimpleNamespace(folder=tmp_path / "run"), status={"done": 1})
    trainer = SimpleNamespace(is_global_zero=True)
    for begun in (Process(), None):
        tracking = Tracking(uri=f"sqlite:///{tmp_path / 'a.db'}")
        tracking._process = begun
        monkeypatch.setattr(tracking, "_start", lambda *given: pytest.fail("it was begun"))
        with pytest.raises(KeyboardInterrupt), tracking.following(trainer, writer):
            raise KeyboardInterrupt
        assert (tracking.outcome or {}).get("status") == ("stopped" if begun else None)
    assert words == ["KILLED"]


def test_videos_are_read_once_and_every_one_is_said_before(tmp_path, database, monkeypatch):
    """Large videos take minutes to read, and who waits for an answer gives up after less."""
    folder = make_run(tmp_path)
    whole, heard = store.hashlib.file_digest, []
    monkeypatch.setattr(
        store.hashlib, "file_digest", lambda *told: (heard.append("hash"), whole(*told))[1]
    )
    log = RunLog(Target(folder, database, "slow"), reading=lambda: heard.append("said"))
    hashed, said = heard.count("hash"), heard.count("said")
    assert hashed >= said == len(log.results.rows)
    assert heard[0] == "said"
    log.prepare()
    assert heard.count("hash") == hashed
    assert heard.count("said") == 2 * said + len(log.results.arms)


def test_the_verb_makes_the_default_store_and_says_where_it_is(tmp_path, capsys, monkeypatch):
    root = tmp_path / "my runs"
    folder = make_run(root)
    monkeypatch.chdir(root)
    assert main(["sync", "parts"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (synced,) = document["synced"]
    assert synced["uri"] == f"sqlite:///{root / 'mlflow.db'}"
    check_logged(synced["uri"], synced)
    assert (root / "mlartifacts").is_dir()
    assert synced["run_id"] in (folder / "tracking.json").read_text()


def test_the_load_of_the_machine_is_logged_or_left_out(tmp_path, database, monkeypatch):
    """Breaks if a run shows none, or one without it is no run because a package is not installed."""
    client = MlflowClient(database)
    run_id = client.create_run("0").info.run_id
    monkeypatch.setattr(worker, "SAMPLE", 0.1)
    monitor = worker._watch_machine(run_id, database)
    until = time.monotonic() + 60
    while not client.get_run(run_id).data.metrics and time.monotonic() < until:
        time.sleep(0.1)
    monitor.finish()
    assert "system/cpu_utilization_percentage" in client.get_run(run_id).data.metrics
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert worker._watch_machine(run_id, database) is None


@pytest.mark.parametrize(
    "junk", ["[]", "3", '{"ended": 3, "status": []}', "[" * 9999, "\x00", '{"%s": 3}']
)
def test_files_that_hold_something_else_are_as_if_they_were_not_there(tmp_path, database, junk):
    folder = make_run(tmp_path)
    first = told(folder, database, "junk")
    (folder / "tracking.json").write_text(junk.replace("%s", shown(database)))
    (folder / "status.json").write_text(junk)
    again = told(folder, database, "junk")
    assert again["run_id"] == first["run_id"]  # found by its tags
    assert first["run_id"] in (folder / "tracking.json").read_text()


def test_a_real_server(tmp_path, server):
    check_logged(server, told(make_run(tmp_path), server, "served"))
    assert len(runs_of(server, "served")) == 3


BROKEN = {
    "hang": (None, "does not answer"),
    "garbage": (b"\x00\xffnonsense\r\n\r\n", "is no MLflow server"),
    "500": (ERROR % b"500 Internal Server Error", "500"),
    "403": (ERROR % b"403 Forbidden", "403"),
    "401": (ERROR % b"401 Unauthorized", "401"),
}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_server_is_said_in_few_words(tmp_path, impatient, how):
    answer, word = BROKEN[how]
    with broken_server(answer) as uri, pytest.raises(Exception, match=r".") as error:
        told(make_run(tmp_path), uri, "broken")
    said = in_one_line(error.value)
    assert word in said
    assert 0 < len(said) <= 200
    assert "\n" not in said


def test_the_verb_ends_with_one_line_and_exit_code_1(tmp_path, capsys, impatient):
    folder = make_run(tmp_path)
    with broken_server(BROKEN["500"][0]) as uri:
        code = main(["sync", str(folder), "--uri", uri])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert f"could not be told to {uri}" in err


@pytest.mark.parametrize("how", ["down", "hang", "garbage", "403"])
def test_a_run_goes_on_without_its_server(tmp_path, capsys, impatient, how):
    config = configuration(tmp_path, data__limit=1, data__seeds=[0])
    if how == "down":
        uri = f"http://127.0.0.1:{free_port()}"
        code = main(["predict", "--config", str(config), "--tracking.uri", uri])
    else:
        with broken_server(BROKEN[how][0]) as uri:
            code = main(["predict", "--config", str(config), "--tracking.uri", uri])
    out, err = capsys.readouterr()
    status = json.loads(out.splitlines()[-1])
    assert (code, status["status"], status["done"]) == (0, "done", 1)
    assert status["tracking"]["status"] == "failed"
    lines = [line for line in err.splitlines() if "tracking" in line]
    assert len(lines) == 1, err
    assert f"miga-bench sync {tmp_path / 'run'} --uri {uri} replays it" in lines[0]


def test_a_server_that_dies_while_videos_are_made(tmp_path, capsys, server, database, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # before it dies, it may be slow
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = configuration(tmp_path, data__limit=1, data__seeds=[0])
    whole = CountingBackbone._denoise
    with mortal(server) as (uri, die):

        def outliving(self, *inputs):
            until = time.monotonic() + 120
            while self.calls == 0 and time.monotonic() < until:
                with suppress(Exception):
                    (run,) = runs_of(database, "mortal")
                    assert run.info.status == "RUNNING"
                    break
                time.sleep(0.2)
            die()
            return whole(self, *inputs)

        monkeypatch.setattr(CountingBackbone, "_denoise", outliving)
        options = ["--tracking.uri", uri, "--tracking.experiment", "mortal"]
        code = main(["predict", "--config", str(config), *options])
    out, err = capsys.readouterr()
    status = json.loads(out.splitlines()[-1])
    assert (code, status["status"], status["done"]) == (0, "done", 1)
    assert status["tracking"]["status"] == "failed"
    (line,) = [line for line in err.splitlines() if "tracking" in line]
    command = f"miga-bench sync {tmp_path / 'run'} --uri {uri} --experiment mortal"
    assert f"{command} replays it" in line
    (run,) = runs_of(database, "mortal")
    assert run.info.status == "RUNNING"  # nobody could tell it better, until it is replayed
    told(tmp_path / "run", server, "mortal")
    parent = next(r for r in runs_of(database, "mortal") if r.info.run_id == run.info.run_id)
    assert parent.info.status == "FINISHED"


def test_a_followed_run_is_logged_and_can_be_replayed(tmp_path, capsys, database):
    config = configuration(tmp_path, data__limit=1, data__seeds=[0])
    options = ["--tracking.uri", database, "--tracking.experiment", "followed"]
    assert main(["predict", "--config", str(config), *options]) == 0
    tracking = json.loads(capsys.readouterr().out.splitlines()[-1])["tracking"]
    assert tracking["status"] == "done"
    assert MlflowClient(database).get_run(tracking["run_id"]).info.status == "FINISHED"
    again = told(tmp_path / "run", database, "followed")
    assert (again["run_id"], again["logged"]) == (tracking["run_id"], [])
    assert "tracking" not in (tmp_path / "run" / "run.yaml").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_database_is_one_line(tmp_path, capsys):
    folder = make_run(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    assert main(["sync", str(folder), "--uri", f"sqlite:///{tmp_path}/closed/mlflow.db"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_wrong_input_is_one_line(tmp_path, capsys):
    folder = make_run(tmp_path)
    for arguments, rule in (
        ([str(tmp_path / "none")], "is no run: it has no run.yaml"),
        ([str(folder), "--uri", "mlruns"], "it is http://HOST:PORT"),
        ([str(folder), "--experiment", " "], "--experiment is empty"),
        ([str(folder), "--videos-mib", "-1"], "--videos-mib is -1: it must be 0 or more"),
    ):
        assert main(["sync", *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert rule in err
    config = configuration(tmp_path)
    assert main(["predict", "--config", str(config), "--tracking.uri", "ftp://x"]) == 2
    assert "it is http://HOST:PORT" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_curve_stays_small():
    curve = Curve()
    for step in range(10 * MOST_BINS):
        curve.add(step, step % 2)
    points = curve.points()
    assert len(points) <= MOST_BINS
    assert {value for _, value in points} == {0.5}
    assert points[1] == (16, 0.5)


def test_names_are_plain_and_never_shared():
    assert list(names(["a[b]", "a(b)"]).values()) == ["a_b", "a_b_2"]


def test_what_is_missing_is_said_and_never_a_number(tmp_path):
    folder = make_run(tmp_path, scores=False)
    (tmp_path / "items" / "partsplainp0".ljust(16, "0") / "manifest.json").unlink()
    results = read_results(folder)
    found = facts(results, results.arms["plain"])
    assert (found.status, found.metrics["videos/missing"]) == ("KILLED", 1)
    assert not any(name.startswith("scores") for name in found.metrics)


def test_help_of_the_program_loads_no_mlflow():
    program = "import sys, miga_bench.cli as c; c._parser(); print('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.postgres
def test_a_server_on_postgresql(tmp_path):
    store = os.environ["MIGA_BENCH_POSTGRES"]
    folder = make_run(tmp_path)
    with mlflow_server(tmp_path, store) as uri:
        ids = told(folder, uri, f"postgres-{time.time_ns()}")
        check_logged(uri, ids)
        name = MlflowClient(uri).get_experiment(ids["experiment_id"]).name
        assert told(folder, uri, name)["logged"] == []
    direct = MlflowClient(store).get_run(told(folder, store, "direct")["run_id"]).info
    assert direct.status == "FINISHED"
    assert direct.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
