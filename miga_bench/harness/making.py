"""Items made and scored: each once, by one process at a time; where they lie is the store's matter."""

from __future__ import annotations

import json
import math
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from miga_bench.errors import LostError, disk_is_full, gpu_is_lost, told
from miga_bench.harness.files import write_json, write_text
from miga_bench.harness.formats import FORMAT
from miga_bench.harness.items import Item
from miga_bench.harness.locks import HeldError, NamedLock
from miga_bench.harness.provenance import git_state
from miga_bench.harness.scorers import Found, ItemScorer
from miga_bench.harness.seals import sealed
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.harness.store import (
    ERROR,
    MANIFEST,
    PASSES,
    SCORES,
    SHEET,
    VIDEO,
    Manifest,
    Store,
    facts_of,
)
from miga_bench.harness.teams import SILENCE, Teamwork
from miga_bench.harness.video import GenerateResult, Video, Watcher
from miga_bench.sampling.base import PassReport

NOT_FINITE = "not finite"  # why a score is None
AGAIN = 5.0  # seconds between two tries to have a lock that is held on another machine


class PassLog(Watcher):
    """Writes a line per pass and passes everything on; memory does not depend on the length.

    Args:
        file: Open for writing.
        watcher: Hears everything too.
    """

    def __init__(self, file: IO[str], watcher: Watcher) -> None:
        self._file, self._watcher = file, watcher

    def started(self, windows: int | None, frames: int | None) -> None:
        """Pass on."""
        self._watcher.started(windows, frames)

    def noticed(self, line: str) -> None:
        """Pass on."""
        self._watcher.noticed(line)

    def wrote(self, frames: Tensor, total: int) -> None:
        """Pass on."""
        self._watcher.wrote(frames, total)

    def passed(self, report: PassReport) -> None:
        """Write the pass: its stage and number, the queue's levels, reflection, totals so far."""
        json.dump(vars(report), self._file)
        self._file.write("\n")
        self._file.flush()  # a sign of life for those that wait for the item
        self._watcher.passed(report)


def make(
    store: Store,
    item: Item,
    video: Video,
    watcher: Watcher,
    stop: StopSignals,
    team: Teamwork | None = None,
    wait: bool = True,
) -> Manifest:
    """Make an item, unless it is whole; no two processes make the same one.

    Args:
        store: Where it lies.
        item: What it is.
        video: The same, ready to be made.
        watcher: Hears about progress.
        stop: The signals that end it, taken over by the caller.
        team: The processes that make it together, led by this one; None is this one alone.
        wait: Whether to wait for another process that makes it.

    Returns:
        The item's manifest; its status is ``done`` or ``failed``.

    Raises:
        HeldError: Another process makes it, and we do not wait.
        StopRequested: Stopped before the item was whole.
        OSError: The disk takes no more, not even the manifest could be written, what is there cannot be
            read now, or it is held by a machine that is silent.
        RuntimeError: The GPU is lost to this process.
        LostError: Another process of the team is gone.
    """
    team = team or Teamwork()
    with _locked(store, item.key, watcher, wait):
        manifest = store.read_checked(item.key)
        if manifest is not None and manifest["status"] == "done":
            return manifest
        folder = store.folder(item.key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        result = _make_files(video, folder, watcher, stop, team)
        with stop.shielded():  # hashing takes seconds, and without a manifest the video is lost
            manifest = _manifest(item, folder, result, video, team.size)
            write_json(folder / MANIFEST, sealed(manifest))
        # no other item would fare better
        if result.error is not None and (disk_is_full(result.error) or gpu_is_lost(result.error)):
            raise result.error
        return manifest


@contextmanager
def _locked(store: Store, key: str, watcher: Watcher, wait: bool = True) -> Iterator[None]:
    """Have an item to oneself; say so where that takes a wait.

    Raises:
        HeldError: Another process has it, and we do not wait.
        OSError: One on another machine has it, which has been silent for ``SILENCE``.
    """
    lock = NamedLock(store.locks / key)
    try:
        lock.acquire()
    except HeldError as holder:
        if not wait:
            raise
        watcher.noticed(f"item {key} is being made by {holder}: waiting for it")
        _wait_for(lock, store.folder(key))
    try:
        yield
    finally:
        lock.release()


def _wait_for(lock: NamedLock, folder: Path) -> None:
    """Take an item's lock when its holder lets go, unless that is a machine that went down.

    A file server may hold such a machine's lock for ever.
    """
    seen: Any = None
    since = time.monotonic()
    while True:
        try:
            return lock.acquire()
        except HeldError as holder:
            if not holder.elsewhere:
                return lock.acquire(wait=True)
            now = str(holder), _written(folder)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > SILENCE.total_seconds():
                raise OSError(
                    f"it is held by {holder}, which has written nothing for {SILENCE}: left as it is; see"
                    " whether that machine is alive, then the same command makes what is missing"
                ) from None
        time.sleep(AGAIN)


def _written(folder: Path) -> list[tuple[str, int]] | None:
    """Return when each file of an item was written to; None while that cannot be seen."""
    try:
        return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))
    except OSError:
        return None


def _make_files(
    video: Video, folder: Path, watcher: Watcher, stop: StopSignals, team: Teamwork
) -> GenerateResult:
    """Make a video's files; whatever goes wrong with it becomes its result."""
    result: GenerateResult | None = None
    try:
        with team.making(video.backbone), open(folder / PASSES, "w", encoding="utf-8") as file:
            log = PassLog(file, watcher)
            video.plan(log)
            result = video.write(folder / VIDEO, folder / SHEET, log, stop)
            if result.signal is not None:
                raise StopRequested(result.signal)
            if result.error is not None:  # so that the team hears of it
                raise result.error
    except LostError:
        raise
    except Exception as error:
        result = result or GenerateResult("failed", 0, {}, error)
        result.keep_first(error)
    if result.error is not None:
        lines = traceback.format_exception(result.error)
        with suppress(OSError):
            (folder / ERROR).write_text("".join(lines), encoding="utf-8")
    return result


def _manifest(
    item: Item, folder: Path, result: GenerateResult, video: Video, processes: int
) -> Manifest:
    record = result.record or video.record(result)
    cost = record["cost"]
    measured = ("seconds", "total_seconds", "peak_memory_mib")
    timings = {"started": record["started"], **{name: cost.pop(name) for name in measured}}
    names = (VIDEO, SHEET, PASSES, ERROR)
    return {
        "format": FORMAT,
        "key": item.key,
        "status": result.status,
        "error": None if result.error is None else told(result.error),
        "spec": item.spec(),
        "frames": result.frames,
        "frame_rate": record["frame_rate"],
        "backbone": record["backbone"],
        "cost": cost,
        "versions": record["versions"],
        "files": {name: facts_of(folder / name) for name in names if (folder / name).exists()},
        "timings": {
            **timings,
            "processes": processes,
            "hardware": record["hardware"],
            "git": git_state(),
        },
    }


def score(store: Store, item: Item, scorers: Sequence[ItemScorer], stop: StopSignals) -> None:
    """Score an item that is done, by those scorers that have not scored it.

    Args:
        store: Where it lies.
        item: Which.
        scorers: By whom.
        stop: The signals that end it, taken over by the caller.

    Raises:
        Exception: What the first scorer raised that did; the others' scores are kept.
        OSError: As of ``make``.
    """
    folder = store.folder(item.key)
    problem: Exception | None = None
    with _locked(store, item.key, Watcher()):
        manifest = store.read_checked(item.key)
        assert manifest is not None, "scored before it was made"
        for scorer in store.unscored(item, scorers, manifest):
            try:
                with torch.inference_mode(False):  # metrics keep tensors that others read
                    found = scorer.score(folder / VIDEO, item)
            except Exception as error:  # the next one may fare better
                problem = problem or error
                continue
            (folder / SCORES).mkdir(exist_ok=True)
            document = {
                "scorer": scorer.identity(),
                "video": manifest["files"][VIDEO]["sha256"],
                **_finite(found),
            }
            with stop.shielded():
                write_text(folder / SCORES / scorer.file, json.dumps(sealed(document)) + "\n")
            scorer.scored(folder / VIDEO)
    if problem is not None:
        raise problem


def _finite(found: Found) -> dict[str, dict[str, Any]]:
    """Return a scorer's numbers with None for NaN and infinity, which would spoil every mean they enter."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    lost = {
        label: NOT_FINITE
        for label, value in found.scores.items()
        if value is not None and known(value) is None
    }
    return {
        "scores": {label: known(value) for label, value in found.scores.items()},
        "reasons": {**found.reasons, **lost},
        "series": {
            label: [list(map(known, bin)) for bin in bins] for label, bins in found.series.items()
        },
    }
