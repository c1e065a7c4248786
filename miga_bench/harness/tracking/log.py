"""A run in MLflow: the run is the parent, its arms are children; what is there already is not made twice.

All comes from the run's folder, so that it can be logged again at any time and to any server. The folder's
``tracking.json`` remembers MLflow's ids, by URI and experiment; where it is lost, tags find the runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from miga_bench.errors import UserError
from miga_bench.harness.files import write_json
from miga_bench.harness.locks import HeldError, NamedLock
from miga_bench.harness.results import check_items_are_there, read_results
from miga_bench.harness.store import SHEET, VIDEO, Store
from miga_bench.harness.tracking.facts import ArmFacts, facts
from miga_bench.harness.tracking.notes import arm_note, note
from miga_bench.harness.tracking.plots import drift_plot, reflection_plot
from miga_bench.harness.tracking.process import Target
from miga_bench.harness.tracking.uri import artifact_folder, shown

MEMORY = "tracking.json"
STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
RUN, ARM, LOGGED = "miga_bench.run", "miga_bench.arm", "miga_bench.logged"
PARENT, NOTE, TABLES = "mlflow.parentRunId", "mlflow.note.content", "mlflow.loggedArtifacts"
PROVENANCE = ("hardware.", "version.", "git.", "weights_hash", "scorer.")  # how its tags begin
# else MLflow shows chats and traces first
KIND = {"mlflow.experimentKind": "custom_model_development"}
MOST_METRICS, MOST_OTHERS = 1000, 100  # that one request may hold
MOST_TEXT = 4900  # characters of a tag
# bytes of contact sheets per arm; the others are named in sheets/left_out.txt
MOST_SHEETS = 200 * 2**20

# What a file that somebody has written into may raise, from its encoding to its depth.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)

Ids = dict[str, Any]


class RunLog:
    """Writes a run to MLflow.

    Args:
        target: Where and how.
        on_progress: Called after every step, as a sign of progress.
        reading: Called before every video that is read, which needs no server.

    Raises:
        UserError: The folder is no run.
    """

    def __init__(
        self,
        target: Target,
        on_progress: Callable[[], None] = lambda: None,
        reading: Callable[[], None] = lambda: None,
    ) -> None:
        self.target, self._reading = target, reading
        self._store = Store(target.folder.parent)
        self.results = read_results(target.folder, self._store, reading)
        self.client = MlflowClient(target.uri, target.uri)
        self._on_progress = on_progress
        self._experiment = ""
        self._ids: Ids = {}
        self._arms: list[ArmFacts] | None = None
        self._seen: set[str] = set()  # keys of the videos that were there at the last look

    def begin(self) -> str:
        """Show the run as running; return its id.

        Raises:
            MlflowException: MLflow refused, or could not be reached.
        """
        with self._remembering():
            return self._parent("RUNNING", [])

    def progress(self) -> None:
        """Log how many videos are done, where that has changed; nothing before ``begin``."""
        if not self._ids.get("run"):
            return
        keys = {row.key for row in self.results.rows} - self._seen
        self._seen |= {
            key
            for key in keys
            if (manifest := self._store.read_unchecked(key)) and manifest["status"] == "done"
        }
        self._changed(self._ids["run"], {"videos/done": float(len(self._seen))})

    def prepare(self) -> list[ArmFacts]:
        """Do what ``write`` does without MLflow: read the folder; return what there is to say.

        Raises:
            UserError: The run's items are not below its root.
        """
        import matplotlib.figure  # noqa: F401 - for the plots: its import takes seconds

        self.results = read_results(self.target.folder, self._store, self._reading)
        check_items_are_there(self.results)
        self._arms = []
        for arm in self.results.arms.values():
            self._reading()
            self._arms.append(facts(self.results, arm))
        return self._arms

    def write(self, status: str | None = None) -> dict[str, Any]:
        """Log everything that lies in the run's folder.

        Args:
            status: MLflow's word for how the run ended; None reads the folder.

        Returns:
            Where it is: ``uri``, ``experiment``, ``experiment_id``, ``run_id``, ``arms`` (ids by name) and
            ``logged`` (the arms that had news).

        Raises:
            MlflowException: MLflow refused, or could not be reached.
        """
        arms = self.prepare() if self._arms is None else self._arms
        status = status or self._status()
        with self._remembering(), TemporaryDirectory() as scratch:
            parent = self._parent("RUNNING", arms)
            logged = [
                arm.arm.name
                for place, arm in enumerate(arms)
                if self._arm(parent, arm, place, Path(scratch))
            ]
            self._files_of_run(parent, arms, Path(scratch))
            if status != "RUNNING":
                self.client.set_terminated(parent, status, self._ended())
            return self._where(parent, logged)

    def stop(self) -> dict[str, Any]:
        """Show the run as killed and leave it at that; return what ``write`` does.

        A run that is stopped may have seconds left. Its arms are logged when it has ended, or by a replay.

        Raises:
            MlflowException: MLflow refused, or could not be reached.
        """
        with self._remembering():
            parent = self._ids["run"] or self._parent("RUNNING", [])
            self.client.set_terminated(parent, "KILLED", self._ended())
            return self._where(parent, [])

    def _where(self, parent: str, logged: Sequence[str]) -> dict[str, Any]:
        return {
            "uri": shown(self.target.uri),
            "experiment": self.target.experiment,
            "experiment_id": self._experiment,
            "run_id": parent,
            "arms": dict(self._ids["arms"]),
            "logged": list(logged),
        }

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Read the ids and find the experiment; nobody else tracks the run meanwhile."""
        lock = NamedLock(self.target.folder / ".tracking.lock")
        try:
            lock.acquire()
        except HeldError as holder:
            raise UserError(
                f"{self.target.folder} is being tracked by {holder}: wait until it ends"
            ) from None
        except OSError:  # a folder that can only be read is tracked all the same
            pass
        try:
            self._remember()
            self._open_experiment()
            yield
        finally:
            lock.release()

    def _open_experiment(self) -> None:
        """Find MLflow's experiment, or create it.

        Raises:
            UserError: It was deleted.
        """
        name, uri = self.target.experiment, self.target.uri
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                files = artifact_folder(uri, self.target.folder.parent)
                self._experiment = self.client.create_experiment(name, files, KIND)
            except MlflowException:  # somebody else was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found is not None:
            if found.lifecycle_stage != "active":
                raise UserError(
                    f"experiment {name!r} was deleted at {shown(uri)}: restore it there, or choose"
                    " another name"
                )
            self._experiment = found.experiment_id
        self._on_progress()

    def _remember(self) -> None:
        """Read the ids that the folder knows."""
        path = self.target.folder / MEMORY
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            ids = known[shown(self.target.uri)][self.target.experiment]
            self._ids = {"run": str(ids["run"]), "arms": dict(ids["arms"])}
        except _UNREADABLE:
            self._ids = {"run": "", "arms": {}}

    def _keep(self) -> None:
        """Write the ids to the folder; if that fails, tags still find the runs."""
        path = self.target.folder / MEMORY
        known: Any = {}
        with suppress(*_UNREADABLE):
            known = json.loads(path.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
        here = known.get(shown(self.target.uri))
        known[shown(self.target.uri)] = here = here if isinstance(here, dict) else {}
        here[self.target.experiment] = self._ids
        with suppress(OSError):
            write_json(path, known)

    def _find(self, known: str, tags: Mapping[str, str]) -> Run | None:
        """Return a run that is there and not deleted, by its id or else by its tags."""
        if known:
            with suppress(MlflowException):
                run = self.client.get_run(known)
                there = run.info.experiment_id == self._experiment
                if there and run.info.lifecycle_stage == "active":
                    return run
        clauses = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
        found = self.client.search_runs([self._experiment], " and ".join(clauses), max_results=1)
        return found[0] if found else None

    def _parent(self, status: str, arms: Sequence[ArmFacts]) -> str:
        """Make or find the parent run, and bring its tags up to date."""
        results = self.results
        tags = {**self._provenance(), RUN: self._key()}
        run = self._find(self._ids["run"], {RUN: self._key()})
        if run is None:
            start = _milliseconds(results.provenance.get("started"))
            run = self.client.create_run(self._experiment, start, tags, results.name)
        self._ids["run"] = run.info.run_id
        self._keep()
        tags[NOTE] = note(results, arms)
        self._on_progress()
        for tag in run.data.tags:  # such as of a scorer that scores no longer
            if tag.startswith(PROVENANCE) and tag not in tags:
                self.client.delete_tag(run.info.run_id, tag)
        self._batches(run.info.run_id, {}, self._params(), tags)
        if run.info.status != status:
            self.client.update_run(run.info.run_id, status)
        return str(run.info.run_id)

    def _link(self) -> str:
        """Return a link to MLflow's page that shows all arms side by side."""
        arms = [str(self._ids["arms"].get(name, "")) for name in self.results.arms]
        if len(arms) < 2 or not all(arms):
            return ""
        runs, where = (quote(json.dumps(ids)) for ids in (arms, [self._experiment]))
        return f"\n\n[All arms side by side](#/compare-runs?runs={runs}&experiments={where})"

    def _params(self) -> dict[str, str]:
        rows, model = self.results.rows, self.results.model
        shape = ("backbone", "precision", "height", "width")
        counts = {
            "arms": len(self.results.arms),
            "prompts": len({row.cluster for row in rows}),
            "seeds": len({row.seed for row in rows}),
            "videos": len(rows),
        }
        return {**{name: str(model.get(name)) for name in shape}, **_texts(counts)}

    def _provenance(self) -> dict[str, str]:
        """Return tags that say from which code and weights a run comes, and on what it was made."""
        about = self.results.provenance
        git, hardware = about.get("git") or {}, about.get("hardware") or {}
        tags = {
            "mlflow.source.name": "miga-bench",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": git.get("commit"),
            "git.changed": git.get("changed"),
            "weights_hash": self.results.model.get("weights_hash"),
            **{f"hardware.{name}": value for name, value in hardware.items()},
            # what scored the videos, with the hashes of its networks
            **{
                f"scorer.{number}": json.dumps(identity, sort_keys=True)
                for number, identity in enumerate(self.results.scorers, start=1)
            },
            **{f"version.{name}": v for name, v in (about.get("versions") or {}).items()},
        }
        return _texts({name: value for name, value in tags.items() if value is not None})

    def _key(self) -> str:
        """Return a key that only this run has, wherever its folder is copied."""
        about = [self.results.name, self.results.provenance.get("started")]
        keys = [row.key for row in self.results.rows]
        return hashlib.sha256(json.dumps([about, keys]).encode()).hexdigest()[:16]

    def _arm(self, parent: str, arm: ArmFacts, place: int, scratch: Path) -> bool:
        """Log an arm, unless it is logged as it is now; return whether there was news."""
        name = arm.arm.name
        wanted = arm.digest(
            self._videos_of(name), self._provenance(), self.target.videos, self.target.videos_mib
        )
        known = str(self._ids["arms"].get(name, ""))
        run = self._find(known, {PARENT: parent, ARM: name})
        theirs: dict[str, str] = {}
        if run is not None:
            if run.data.tags.get(LOGGED) == wanted:
                self._ids["arms"][name] = run.info.run_id
                if run.data.tags.get(PARENT) != parent:
                    self.client.set_tag(run.info.run_id, PARENT, parent)
                self._on_progress()
                return False
            # metrics cannot be taken back: an arm with news is a new run, with the tags that users gave it
            theirs = {k: v for k, v in run.data.tags.items() if not _ours(k)}
            self._delete(run)
        # MLflow lists the youngest first: so the arms stand in their order
        start = _milliseconds(self.results.provenance.get("started")) + len(self.results.arms)
        tags = {**theirs, **self._provenance(), PARENT: parent, ARM: name, NOTE: arm_note(arm)}
        made = self.client.create_run(self._experiment, start - place, tags, name)
        run_id = made.info.run_id
        self._ids["arms"][name] = run_id
        self._keep()
        self._batches(run_id, arm.metrics, arm.params, {}, arm.curves)
        self._files_of_arm(run_id, arm, scratch)
        tables = json.dumps([{"path": "scores.json", "type": "table"}])
        self._batches(run_id, {}, {}, {TABLES: tables, LOGGED: wanted})
        self.client.set_terminated(run_id, arm.status, start + round(1000 * arm.seconds))
        self._on_progress()
        return True

    def _delete(self, run: Run) -> None:
        self.client.delete_run(run.info.run_id)
        with suppress(Exception):  # not every store can; then MLflow's own gc does
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            get_artifact_repository(
                run.info.artifact_uri, tracking_uri=self.target.uri
            ).delete_artifacts()

    def _videos_of(self, arm: str) -> list[str]:
        return [f"{row.key} {row.status}" for row in self.results.of(arm)]

    def _files_of_arm(self, run_id: str, arm: ArmFacts, scratch: Path) -> None:
        self.client.log_dict(run_id, dict(arm.table), "scores.json")
        if drift_plot([arm], scratch / "drift.png"):
            self._file(run_id, scratch / "drift.png", "plots")
        if reflection_plot(arm, scratch / "reflection.png"):
            self._file(run_id, scratch / "reflection.png", "plots")
        room = {"sheets": MOST_SHEETS, "videos": self.target.videos_mib * 2**20}
        left_out: dict[str, list[str]] = {}
        for row in self.results.of(arm.arm.name):
            title = f"{row.prompt_id}-{row.seed}"
            for source, folder in ((SHEET, "sheets"), (VIDEO, "videos")):
                path = row.folder / source
                if not path.exists() or (folder == "videos" and not self.target.videos):
                    continue
                room[folder] -= path.stat().st_size
                if room[folder] < 0:
                    where = f"{title}: items/{row.key}/{source} below the run's root"
                    left_out.setdefault(folder, []).append(where)
                    continue
                link = scratch / f"{title}{path.suffix}"
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
                self._file(run_id, link, folder)
        for folder, names in left_out.items():
            self.client.log_text(run_id, "\n".join(names) + "\n", f"{folder}/left_out.txt")

    def _files_of_run(self, parent: str, arms: Sequence[ArmFacts], scratch: Path) -> None:
        for name in ("run.yaml", "status.json", "prompts.json"):
            if (self.target.folder / name).exists():
                self._file(parent, self.target.folder / name, None)
        if drift_plot(arms, scratch / "drift.png"):
            self._file(parent, scratch / "drift.png", "plots")
        columns = list(dict.fromkeys(c for arm in arms for c in arm.table["columns"]))
        data = [
            [dict(zip(arm.table["columns"], line, strict=True)).get(c) for c in columns]
            for arm in arms
            for line in arm.table["data"]
        ]
        self.client.log_dict(parent, {"columns": columns, "data": data}, "scores.json")
        tables = json.dumps([{"path": "scores.json", "type": "table"}])
        words = note(self.results, arms)
        link = self._link()
        linked = words + link if len(words + link) <= MOST_TEXT else words
        self._batches(parent, {}, {}, {TABLES: tables, NOTE: linked})
        states = [row.status for row in self.results.rows]
        self._changed(
            parent, {f"videos/{s}": float(states.count(s)) for s in ("done", "failed", "missing")}
        )

    def _file(self, run_id: str, path: Path, folder: str | None) -> None:
        self.client.log_artifact(run_id, str(path), folder)
        self._on_progress()

    def _changed(self, run_id: str, metrics: Mapping[str, float]) -> None:
        before = self.client.get_run(run_id).data.metrics
        news = {name: value for name, value in metrics.items() if before.get(name) != value}
        for name, value in news.items():
            self.client.log_metric(run_id, name, value)

    def _batches(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, str],
        tags: Mapping[str, str],
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        """Log in as few requests as MLflow allows."""
        now = self._ended() or _milliseconds(None)
        numbers = [Metric(name, value, now, 0) for name, value in metrics.items()]
        for name, points in (curves or {}).items():
            numbers += [Metric(name, value, now, step) for step, value in points]
        texts = [Param(name, value[:MOST_TEXT]) for name, value in params.items()]
        marks = [RunTag(name, value[:MOST_TEXT]) for name, value in tags.items()]
        while numbers or texts or marks:
            room = MOST_METRICS - MOST_OTHERS * 2
            self.client.log_batch(run_id, numbers[:room], texts[:MOST_OTHERS], marks[:MOST_OTHERS])
            numbers = numbers[room:]
            texts, marks = texts[MOST_OTHERS:], marks[MOST_OTHERS:]
            self._on_progress()

    def _ended(self) -> int | None:
        with suppress(*_UNREADABLE):
            status = json.loads((self.target.folder / "status.json").read_text(encoding="utf-8"))
            return _milliseconds(status["ended"])
        return None

    def _status(self) -> str:
        with suppress(*_UNREADABLE):
            status = json.loads((self.target.folder / "status.json").read_text(encoding="utf-8"))
            missing = any(row.status == "missing" for row in self.results.rows)
            # what was done may be gone since
            return "KILLED" if missing and status["status"] == "done" else STATUS[status["status"]]
        lock = NamedLock(self.target.folder / ".lock")
        try:
            lock.acquire()
        except (HeldError, OSError):
            return "RUNNING"
        lock.release()
        return "KILLED"


def _ours(tag: str) -> bool:
    return tag.startswith(("mlflow.", "miga_bench.", *PROVENANCE))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _milliseconds(iso: str | None) -> int:
    when = datetime.fromisoformat(iso) if iso else datetime.now()
    return round(1000 * when.timestamp())
