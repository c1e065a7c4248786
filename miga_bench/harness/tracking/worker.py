"""The process that talks to MLflow, from inside: reads orders from standard input, answers in JSON lines."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from miga_bench.harness.tracking.process import PATIENCE, Target

LAST_MINUTES = 120.0  # seconds that are left to it when the run's process is gone
NEW_DATABASE = 40.0  # seconds more for MLflow to make its tables in a file, on a busy machine
MOST_STRETCH = 10.0  # times as long, on a machine that is busy with something else
LOOK = 15.0  # seconds between looks at how many videos are done
SAMPLE = 5.0  # seconds between samples of the machine's load
MOST_TEXT = 200

Answer = Callable[..., None]


def main() -> None:
    """Track the run that the first line names."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # MLflow prints where to look at runs

    def answer(event: str, **more: Any) -> None:
        with suppress(OSError):  # nobody listens any more
            json.dump({"event": event, **more}, answers)
            answers.write("\n")
            answers.flush()

    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    target = json.loads(sys.stdin.readline())
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    try:
        _track(target, orders, answer)
    except Exception as error:
        from miga_bench.errors import UserError

        answer("failed", what=in_one_line(error), wrong_input=isinstance(error, UserError))
    answers.close()
    os._exit(0)  # threads that hang at a server are not waited for


def _listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put({"end": "KILLED"})  # the run's process has died, or had its answer
    timer = threading.Timer(LAST_MINUTES, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _track(fields: dict[str, Any], orders: queue.Queue[dict[str, Any]], answer: Answer) -> None:
    busy = _Busy()
    from miga_bench.harness.tracking.log import RunLog
    from miga_bench.harness.tracking.uri import sqlite_file

    follow = fields.pop("follow")
    target = Target(**{**fields, "folder": Path(fields["folder"])})
    _few_retries()
    answer("opening", seconds=busy.stretched(PATIENCE))
    if file := sqlite_file(target.uri):
        answer("opening", seconds=busy.stretched(PATIENCE + NEW_DATABASE))
        _make_database(file)
    log = RunLog(target, lambda: answer("step"), lambda: answer("reading"))
    status, monitor = None, None
    if follow:
        answer("opening", seconds=busy.stretched(PATIENCE))
        try:
            monitor = _watch_machine(log.begin(), target.uri)
            answer("begun")
        except Exception as error:  # it may be well again when the run ends
            answer("waiting", what=in_one_line(error))
        status = _until_end(log, orders)
        if status == "KILLED":
            answer("ending", seconds=busy.stretched(PATIENCE))
            answer("done", **log.stop())
            return
    busy = _Busy()
    log.prepare()
    answer("ending", seconds=busy.stretched(PATIENCE + _fair_seconds(log)))
    if monitor is not None:
        threading.Thread(target=monitor.finish, daemon=True).start()
    answer("done", **log.write(status))


class _Busy:
    """How much longer things take than on an idle machine: elapsed time over computing time."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.process_time()

    def stretched(self, seconds: float) -> float:
        """Return how long to allow for something that takes so many seconds on an idle machine."""
        passed, computed = time.monotonic() - self._began[0], time.process_time() - self._began[1]
        return seconds * min(MOST_STRETCH, max(1.0, passed / max(computed, 0.1)))


def _until_end(log: Any, orders: queue.Queue[dict[str, Any]]) -> str | None:
    while True:
        with suppress(queue.Empty):
            status: str | None = orders.get(timeout=LOOK)["end"]
            return status
        with suppress(Exception):  # a server that went away may come again
            log.progress()


def _watch_machine(run_id: str, uri: str) -> Any:
    with suppress(Exception):  # no load of the machine is better than no run
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            run_id, sampling_interval=SAMPLE, resume_logging=True, tracking_uri=uri
        )
        monitor.start()
        return monitor
    return None


def _fair_seconds(log: Any) -> float:
    """Return what a healthy server takes for the run's files: 1 s for each MB, 0.2 s for each file."""
    from miga_bench.harness.store import SHEET, VIDEO

    sizes = []
    for row in log.results.rows:
        for name in (SHEET, VIDEO):
            with suppress(OSError):
                sizes.append((row.folder / name).stat().st_size)
    if not log.target.videos:
        return 0.2 * len(log.results.rows)
    return 0.2 * len(sizes) + sum(sizes) / 1e6


def _make_database(file: Path) -> None:
    """Make MLflow's tables, if there are none, in another file first: half of them would be of no use."""
    from mlflow import MlflowClient

    if file.exists() and file.stat().st_size:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _few_retries() -> None:
    """Make MLflow give up on a database in seconds; by itself it goes on for an hour."""
    with suppress(Exception):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 3


def in_one_line(error: Exception) -> str:
    """Return what went wrong at a server in few words."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"the database's driver {error.name} is not installed"
    if code := re.search(r"too many (\d+) error responses|failed with error code (\d+)", text):
        number = code[1] or code[2]
        refused = number in ("401", "403")
        return f"the server {'refuses to' if refused else 'fails to'} answer (HTTP {number})"
    for sign, meaning in (
        ("Connection refused", "nobody answers there (connection refused)"),
        ("Name or service not known", "there is no such host"),
        ("Failed to resolve", "there is no such host"),
        ("NameResolutionError", "there is no such host"),
        ("timed out", "the server accepts, but does not answer"),
        ("BadStatusLine", "what answers there is no MLflow server"),
        ("not in a valid JSON format", "what answers there is no MLflow server"),
        ("Connection aborted", "the server hung up"),
        ("readonly database", "the database is read-only"),
        ("database is locked", "the database is locked by another process"),
        ("unable to open database file", "the database file cannot be opened"),
        ("No space left", "the disk is full"),
        ("database or disk is full", "the disk is full"),
        ("file is not a database", "the file is no database"),
    ):
        if sign in text:
            return meaning
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 3]}..."


if __name__ == "__main__":
    main()
