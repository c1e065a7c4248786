"""MLflow beside a run: the run shows as running while it is made, and is logged whole when it ends.

A run that is stopped is only marked as killed: there may be seconds left, and the same command goes on.
Whatever is wrong with MLflow, the run goes on as if it were not there; ``miga-bench sync`` replays it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from miga_bench.errors import UserError
from miga_bench.harness.tracking.process import Target, TrackingProcess
from miga_bench.harness.tracking.uri import shown, tracking_uri
from miga_bench.harness.writer import RunWriter

EXPERIMENT = "miga-bench"


class Tracking(Callback):
    """Logs a run and each of its arms in MLflow.

    Args:
        enabled: Whether to log; by default if a uri is given (experiments log in any case).
        uri: http://HOST:PORT of a server, sqlite:///FILE or another database; by default what
            MLFLOW_TRACKING_URI says, or else the file mlflow.db in the run's root.
        experiment: MLflow's name for a group of runs.
        videos: Keep the videos there, too; contact sheets are in any case, up to 200 MiB of each arm.
        videos_mib: At most so many MiB of videos of each arm.

    Attributes:
        outcome: How it went, after the run: where in MLflow it is, or what failed; None if not enabled.

    Raises:
        UserError: MLflow cannot keep runs at the URI, or a value is out of its range.
    """

    def __init__(
        self,
        enabled: bool | None = None,
        uri: str | None = None,
        experiment: str = EXPERIMENT,
        videos: bool = True,
        videos_mib: int = 500,
    ) -> None:
        if not experiment.strip():
            raise UserError("tracking.experiment is empty: give the group of runs a name")
        if videos_mib < 0:
            raise UserError(f"tracking.videos_mib is {videos_mib}: it must be 0 or more")
        self.enabled = uri is not None if enabled is None else enabled
        if self.enabled:
            tracking_uri(uri, Path())  # a wrong one is refused before anything is made
        self.outcome: dict[str, Any] | None = None
        self._uri, self._experiment = uri, experiment
        self._videos, self._videos_mib = videos, videos_mib
        self._process: TrackingProcess | None = None
        self._said = False

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Show the run as running, without waiting for that."""
        if self.enabled and trainer.is_global_zero:
            (writer,) = (c for c in trainer.callbacks if isinstance(c, RunWriter))
            self._start(writer.run.folder, follow=True)

    @contextmanager
    def following(self, trainer: Any, writer: RunWriter) -> Iterator[None]:
        """Log the run when the block has ended, in whatever way.

        Raises:
            UserError: MLflow cannot keep runs below the run's root, where it does by default.
        """
        if self.enabled:
            tracking_uri(self._uri, writer.run.folder.parent)
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):  # how Lightning ends when it was interrupted
            status = "KILLED"
            raise
        finally:
            if self.enabled and trainer.is_global_zero:
                self._finish(writer, status)

    def _start(self, folder: Path, follow: bool) -> None:
        uri = tracking_uri(self._uri, folder.parent)
        target = Target(folder, uri, self._experiment, self._videos, self._videos_mib)
        try:
            self._process = TrackingProcess(target, follow, lambda what: self._say(what, folder))
        except OSError as error:
            self._say(error.strerror or str(error), folder)

    def _finish(self, writer: RunWriter, status: str) -> None:
        folder = writer.run.folder
        # who stops a run that is done already stops nothing of it
        stopped = status == "KILLED" and (writer.status or {}).get("status") in (None, "stopped")
        # all was there already
        if self._process is None and writer.status is not None and not stopped:
            self._start(folder, follow=False)
        if self._process is None:
            return
        try:
            word = self._process.finish(status if stopped or not writer.status else None)
        except KeyboardInterrupt:
            word = {"event": "failed", "what": "stopped by Ctrl-C"}
        if word["event"] == "failed":
            self._say(word["what"], folder)
            uri = shown(tracking_uri(self._uri, folder.parent))
            self.outcome = {"status": "failed", "uri": uri, "error": word["what"]}
        else:
            self.outcome = {**word, "status": "stopped" if stopped else "done"}
            del self.outcome["event"]
            if self._said:
                print("miga-bench: tracking works again: the run is logged", file=sys.stderr)

    def _say(self, what: str, folder: Path) -> None:
        """Say what failed, once for a run; ``outcome`` has how it ended."""
        if self._said:
            return
        self._said = True
        uri = shown(tracking_uri(self._uri, folder.parent))
        sync = ["miga-bench", "sync", str(folder)]
        if self._uri is not None:
            sync += ["--uri", uri]
        if self._experiment != EXPERIMENT:
            sync += ["--experiment", self._experiment]
        print(
            f"miga-bench: tracking at {uri} failed ({what}); the run does without, and"
            f" {shlex.join(sync)} replays it",
            file=sys.stderr,
        )
