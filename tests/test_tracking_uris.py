"""Where MLflow keeps runs: which URIs are taken, the command that replays a run there, how far a run is."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_runs import RunFolder

from miga_bench.errors import UserError
from miga_bench.harness.tracking.callback import Tracking
from miga_bench.harness.tracking.log import RunLog
from miga_bench.harness.tracking.process import Target
from miga_bench.harness.tracking.uri import artifact_folder, shown, tracking_uri


@pytest.fixture(autouse=True)
def no_server_of_the_users(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    "uri", ["", "mlruns", "file:/x", "http://", "http://h:no", "sqlite://", "a b"]
)
def test_uris_that_are_none(uri, tmp_path):
    with pytest.raises(UserError, match="tracking URI"):
        tracking_uri(uri, tmp_path)


@pytest.mark.parametrize("name", ["mlflow#1.db", "mlflow?.db", "a\tb.db", "a\nb.db"])
def test_a_file_that_a_uri_cannot_name_is_refused_instead_of_another_one_written(name, tmp_path):
    for given, root in ((f"sqlite:///{name}", tmp_path), (None, tmp_path / name)):
        with pytest.raises(UserError, match=r"no file with .* in its path can be MLflow's"):
            tracking_uri(given, root)
    writer = SimpleNamespace(run=SimpleNamespace(folder=tmp_path / name / "run"))
    with (
        pytest.raises(UserError, match="in its path"),
        Tracking(True).following(SimpleNamespace(is_global_zero=True), writer),
    ):
        pytest.fail("the run was begun")


@pytest.mark.parametrize("given", [True, False])
def test_the_command_that_replays_a_run_can_be_pasted(given, tmp_path, capsys):
    """Breaks if a shell or the verb would not take the suggestion for a folder with a space in its name."""
    folder = tmp_path / "my runs" / "run"
    uri = f"sqlite:///{tmp_path}/my runs/a.db" if given else None
    Tracking(True, uri)._say("the disk is full", folder)
    command = re.search(r"and (miga-bench sync .*) replays it", capsys.readouterr().err)[1]
    options = ["--uri", uri] if given else []
    assert shlex.split(command) == ["miga-bench", "sync", str(folder), *options]
    assert tracking_uri(uri, folder.parent)


def test_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///my runs/a.db", Path()) == f"sqlite:///{tmp_path}/my runs/a.db"
    assert tracking_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("sqlite:///a.db", Path()) == f"sqlite:///{tmp_path}/a.db"
    assert tracking_uri("http://h:5000/", Path()) == "http://h:5000"
    assert shown("postgresql://me:secret@h/db") == "postgresql://me:***@h/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:1")
    assert tracking_uri(None, Path()) == "http://h:1"


def test_the_count_of_done_videos_has_no_failed_ones(tmp_path, monkeypatch):
    """Breaks if MLflow shows a run as done whose every video failed."""
    arms, prompts = {"one": {"method": "miga", "settings": {}}}, {"p1": "a", "p2": "b", "p3": "c"}
    run = RunFolder(tmp_path, "mine", arms, prompts)
    run.item("one", "p1")
    run.item("one", "p2", error="poisoned")
    monkeypatch.setattr("miga_bench.harness.tracking.log.MlflowClient", lambda *uris: None)
    log, told = RunLog(Target(run.close(), "sqlite:///none.db", "mine")), []
    log._ids = {"run": "1"}
    monkeypatch.setattr(log, "_changed", lambda run_id, metrics: told.append(metrics))
    log.progress()
    shutil.rmtree(tmp_path / "items" / "mine-one-p2-0")  # the same command tries it again
    run.item("one", "p2")
    log.progress()
    assert told == [{"videos/done": 1.0}, {"videos/done": 2.0}]


@pytest.mark.parametrize("kind", ["postgresql", "postgresql+psycopg2", "mysql+pymysql", "mssql"])
def test_the_files_of_a_database_lie_below_the_runs_root(kind, tmp_path, monkeypatch):
    """Breaks if MLflow puts videos into the working folder of whoever logs first."""
    monkeypatch.chdir(tmp_path)
    wanted = (tmp_path / "my runs" / "mlartifacts").as_uri()
    assert artifact_folder(f"{kind}://me:secret@h/db", Path("my runs")) == wanted
    assert artifact_folder("sqlite:////d/a.db", Path("my runs")) == "file:///d/mlartifacts"
    assert artifact_folder("http://h:5000", Path("my runs")) is None
