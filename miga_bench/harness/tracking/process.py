"""The process that talks to MLflow, seen from the one that makes videos, which never waits long.

MLflow lives in a process of its own, so that a server that hangs costs a run no video, the run's own
measurements include nothing of MLflow, and a run that is killed is still marked as killed.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTING = 120.0  # seconds for it to import what it needs, beside whatever else the machine does
PATIENCE = 20.0  # seconds for a phase; what files fairly take comes on top
SETTLING = 2.0  # seconds for the process to end after its last word
LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}
Message = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Where and how a run is tracked.

    Attributes:
        folder: The run's.
        uri: MLflow's, as ``tracking_uri`` returns it.
        experiment: MLflow's name for the group of runs.
        videos: Whether videos are kept there too.
        videos_mib: At most so many MiB of them per arm; the others are named in ``videos/left_out.txt``.
    """

    folder: Path
    uri: str
    experiment: str = "miga-bench"
    videos: bool = True
    videos_mib: int = 500


class TrackingProcess:
    """A process that tracks one run.

    Args:
        target: Where and how.
        follow: Whether the run is being made: it shows as running until ``finish``. Otherwise what
            lies in its folder is logged at once.
        waiting: Told why a run that is being made could not be shown as running; that is tried again.

    Raises:
        OSError: It could not be started.
    """

    def __init__(
        self,
        target: Target,
        follow: bool,
        waiting: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "miga_bench.harness.tracking.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**LIMITS, **os.environ},  # who sets a limit has a reason
            start_new_session=True,  # Ctrl-C is for the run
        )
        self._follow, self._waiting = follow, waiting
        self._messages: queue.Queue[Message | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send({**vars(target), "folder": str(target.folder), "follow": follow})

    def _send(self, document: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died, which is heard soon
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self._process.stdout:
                message = json.loads(line)
                if message["event"] == "waiting":
                    self._waiting(message["what"])
                self._messages.put(message)
        self._messages.put(None)

    def finish(self, status: str | None = None) -> Message:
        """Log everything; return how it ended: ``done``, or ``failed`` and ``what``.

        A run that is followed has ``PATIENCE`` seconds to be shown at all, and again for its end, plus what
        its files should take; more on a machine so busy that the process hardly gets to compute. Otherwise
        each step has that long, however many there are.

        Args:
            status: MLflow's word for how the run ended; None reads the folder.
        """
        try:
            if self._follow:
                self._send({"end": status})
            return self._last_word()
        finally:
            self.end()

    def _last_word(self) -> Message:
        until = time.monotonic() + STARTING
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return {"event": "failed", "what": "no answer in time"}
            if message is None:
                return {"event": "failed", "what": "its process ended without a word"}
            if message["event"] in ("done", "failed"):
                return message
            if message["event"] == "reading":  # of the folder, which needs no server
                until = time.monotonic() + STARTING
            elif message["event"] in ("opening", "ending") or not self._follow:
                until = time.monotonic() + message.get("seconds", PATIENCE)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(SETTLING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
