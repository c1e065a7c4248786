"""A run: a folder that says what one command makes, resumable by the same command.

``ROOT/NAME/run.yaml`` is written first: what the items are made of, their keys, the configuration and where
it all comes from. ``status.json`` is written last. ``videos/`` has a link for every item that is done, named
after prompt and seed, and ``prompts.json`` says which prompt each shows, as ``miga-bench score`` reads it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from miga_bench.errors import Notice, UserError
from miga_bench.harness.configurations import yaml_of
from miga_bench.harness.differences import differences
from miga_bench.harness.files import write_json, write_text
from miga_bench.harness.formats import FORMAT, check_format
from miga_bench.harness.items import Item
from miga_bench.harness.locks import HeldError, NamedLock, check_lockable
from miga_bench.harness.names import NAME, NAME_RULE
from miga_bench.harness.provenance import git_state, hardware, versions
from miga_bench.harness.request import check_writable
from miga_bench.harness.scorers import ItemScorer, narrowed
from miga_bench.harness.store import VIDEO, Store

ASKED = ("scorers", "configuration", "dimensions", "told")  # of run.yaml: decides no video
MOST_SHOWN = 6
PATIENCE, AGAIN = 180.0, 5.0  # seconds for a lock held elsewhere, and between two tries
LATE = 70.0  # seconds that a file may be seen later elsewhere: NFS remembers for 60 that there was none


class Run:
    """A folder of items.

    Args:
        root: The folder above all runs; runs below it share their items.
        name: The run's own folder in it.
        fail_on_error: Whether a failed item makes the run a failed one: true, false, or the share of
            items above which it does.

    Raises:
        UserError: The name or the share cannot be one, or the folder cannot be written.
    """

    def __init__(self, root: Path, name: str, fail_on_error: bool | float = True) -> None:
        if not NAME.fullmatch(name) or name == "items":
            raise UserError(f"run.name is {name!r}: it must be of {NAME_RULE}, and not 'items'")
        if not 0 <= fail_on_error <= 1:
            raise UserError(
                f"run.fail_on_error is {fail_on_error}: it must be true, false or a share between 0 and 1"
            )
        self.store, self.folder = Store(root), root / name
        self.fail_on_error = fail_on_error
        for folder in (self.folder, self.store.root / "items", self.store.locks):
            check_writable(folder, "run.root")
        check_lockable(self.folder)
        self._lock = NamedLock(self.folder / ".lock")
        self._told_of_links = False
        self._began, self._clock = datetime.now(UTC), time.monotonic()

    def acquire(self) -> None:
        """Become the run's only writer; wait up to ``PATIENCE`` for a holder on another machine to be gone.

        After a machine went down, a file server keeps its lock for a while; its job may have been requeued by
        then.

        Raises:
            UserError: Another process is the run's writer, or the folder holds something else.
        """
        if self.folder.exists():
            self._check_ours()
        until, told = time.monotonic() + PATIENCE, False
        while True:
            try:
                return self._lock.acquire()
            except HeldError as holder:
                if not holder.elsewhere or time.monotonic() > until:
                    raise self._taken(str(holder)) from None
                if not told:
                    warnings.warn(
                        f"{self.folder} is held by {holder}: waiting for {PATIENCE:.0f} s, since a machine"
                        " that went down holds it for a while",
                        Notice,
                        stacklevel=2,
                    )
                told = True
                time.sleep(AGAIN)

    def _check_ours(self) -> None:
        names = {path.name for path in self.folder.iterdir()}
        if "run.yaml" not in names and not all(name.startswith(".") for name in names):
            raise UserError(
                f"{self.folder} holds something that is no run: choose another run.name"
            )

    def _taken(self, holder: str) -> UserError:
        return UserError(
            f"{self.folder} is being written by {holder}: wait until it ends, or choose another"
            " run.name"
        )

    def release(self) -> None:
        """Let other writers in."""
        self._lock.release()

    def open(
        self,
        made_of: Mapping[str, Any],
        items: Mapping[str, Item],
        configuration: Mapping[str, Any],
        device: str,
        scorers: Sequence[ItemScorer] = (),
    ) -> list[str]:
        """Write ``run.yaml``, or check that the one there says the same.

        Args:
            made_of: What decides the items, by the names users know; compared with what is there.
            items: By name, which is prompt and seed.
            configuration: The whole configuration, for the record; the last one is kept.
            device: Where the items are made.
            scorers: Of the videos; they may differ from the last command's.

        Returns:
            The names of the items that are still to be made or scored.

        Raises:
            UserError: The run was begun with other values, or an item is in it twice.
        """
        keys = {name: item.key for name, item in items.items()}
        _check_unique(keys)
        plain = _plain(made_of)
        path = self.folder / "run.yaml"
        asked = _asked(items, scorers, configuration)
        if path.exists():
            # what decides the videos stays; by what they are scored and shown is as last asked for
            document = self._compare(path, plain)
            if _plain(asked) != {name: document[name] for name in ASKED if name in document}:
                kept = {n: part for n, part in document.items() if n in asked or n not in ASKED}
                write_text(path, _dump({**kept, **asked}))
        else:
            document = {
                "format": FORMAT,
                "name": self.folder.name,
                "made_of": plain,
                "items": keys,
                **asked,
                "provenance": {
                    "started": self._began.isoformat(timespec="seconds"),
                    "git": git_state(),
                    "versions": versions(),
                    "hardware": hardware(device),
                },
            }
            write_text(path, _dump(document))
        (self.folder / "status.json").unlink(missing_ok=True)
        (self.folder / "videos").mkdir(exist_ok=True)
        texts = {name: list(item.wanted) for name, item in items.items()}
        prompts = {f"{n}.mp4": told[0] if len(told) == 1 else told for n, told in texts.items()}
        write_json(self.folder / "prompts.json", prompts)
        done = dict.fromkeys(name for name, key in keys.items() if self.store.is_done(key))
        self._tell_of_damage({name: key for name, key in keys.items() if name not in done})
        for name in done:
            self.link(name, items[name])
        whole = {name for name in done if not self.store.unscored(items[name], scorers)}
        return [name for name in keys if name not in whole]

    def _tell_of_damage(self, keys: Mapping[str, str]) -> None:
        found = [(name, damage) for name, key in keys.items() if (damage := self.store.damage(key))]
        if found:
            (name, damage), number = found[0], len(found)
            warnings.warn(
                f"{number} finished video{'s are' if number > 1 else ' is'} broken and made again; the"
                f" first is {name}: {damage}",
                Notice,
                stacklevel=2,
            )

    def look(self, made_of: Mapping[str, Any], items: Mapping[str, Item]) -> bool:
        """Tell whether the run was begun already; nothing is written.

        Args:
            made_of: As for ``open``.
            items: The same.

        Raises:
            UserError: What ``acquire`` and ``open`` would say.
        """
        _check_unique({name: item.key for name, item in items.items()})
        if not self.folder.exists():
            return False
        self._check_ours()
        holder = self._lock.holder()
        if holder is not None:
            raise self._taken(holder)
        path = self.folder / "run.yaml"
        if path.exists():
            self._compare(path, _plain(made_of))
        return path.exists()

    def _compare(self, path: Path, made_of: Mapping[str, Any]) -> dict[str, Any]:
        try:
            document: dict[str, Any] = yaml_of(path.read_text(encoding="utf-8"))
            check_format(document, document.get("provenance"))
            before = document["made_of"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}), and says what the run is made of: choose another"
                " run.name (finished videos are found again), or put a copy of it back"
            ) from error
        changes = differences(before, made_of)
        if changes:
            more = f"; and {len(changes) - MOST_SHOWN} more" if len(changes) > MOST_SHOWN else ""
            raise UserError(
                f"{self.folder} was begun with other values, then -> now: "
                f"{'; '.join(changes[:MOST_SHOWN])}{more}. Give the old values, or another"
                " run.name, which shares the videos that are made"
            )
        return document

    def link(self, name: str, item: Item) -> None:
        """Show a finished item under its name in ``videos/``."""
        link, video = self.folder / "videos" / f"{name}.mp4", self.store.folder(item.key) / VIDEO
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(video, link.parent))
        except FileExistsError:
            pass
        except OSError as error:
            # no room for it, or a disk that has no links, as many an external one
            if not self._told_of_links:
                warnings.warn(
                    f"{link} cannot be made ({error.strerror}): the video is {video}, and run.yaml names those"
                    " of the others",
                    Notice,
                    stacklevel=2,
                )
            self._told_of_links = True

    def wait_for(self, items: Iterable[Item], scorers: Sequence[ItemScorer]) -> None:
        """Wait until items that other processes have finished are seen here, at most for ``LATE`` seconds.

        On a file server, a machine that looked for a file before it was there may not see it for up to a
        minute.

        Args:
            items: Made and scored.
            scorers: Of the videos.
        """
        until, left = time.monotonic() + LATE, list(items)
        while left := [item for item in left if not self._is_whole(item, scorers)]:
            if time.monotonic() > until:
                return
            time.sleep(AGAIN)

    def _is_whole(self, item: Item, scorers: Sequence[ItemScorer]) -> bool:
        manifest = self.store.manifest(item.key)
        done = manifest is not None and manifest["status"] == "done"
        return done and not self.store.unscored(item, scorers, manifest)

    def close(
        self,
        items: Mapping[str, Item],
        signal: int | None = None,
        scorers: Sequence[ItemScorer] = (),
    ) -> dict[str, Any]:
        """Write ``status.json`` from what lies on disk, and return it.

        Its status is ``done``, ``failed`` (more failures than ``fail_on_error`` allows, or an item
        that nobody made) or ``stopped``.

        Args:
            items: All of the run's, by name.
            signal: What stopped it; None is nothing. A stop may leave only seconds: then no video is read,
                and items count as their manifests say.
            scorers: Of the videos.
        """
        look = self.store.manifest if signal is None else self.store.read_unchecked
        manifests = {name: look(item.key) for name, item in items.items()}
        failed = {
            name: str(manifest["error"])
            for name, manifest in manifests.items()
            if manifest is not None and manifest["status"] == "failed"
        }
        missing = [name for name, manifest in manifests.items() if manifest is None]
        allowed = self.fail_on_error
        # true tolerates none, false all
        most = len(items) * ((0 if allowed else 1) if isinstance(allowed, bool) else allowed)
        unscored = [
            name
            for name, manifest in manifests.items()
            if manifest is not None
            and name not in failed
            and self.store.unscored(items[name], scorers, manifest)
        ]
        bad = len(failed) + len(unscored) > most or bool(missing)
        status = {
            "run": str(self.folder),
            "status": "stopped" if signal else "failed" if bad else "done",
            "items": len(items),
            "done": len(items) - len(failed) - len(missing),
            "failed": failed,
            "missing": missing,
            "unscored": unscored,
            "fail_on_error": allowed,
            "signal": signal,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
        }
        try:
            write_json(self.folder / "status.json", status)
        except OSError as error:  # the videos are whole all the same
            where = f"{self.folder / 'status.json'} cannot be written"
            warnings.warn(
                f"{where} ({error.strerror}): go by what is said here", Notice, stacklevel=2
            )
        return status


def _asked(
    items: Mapping[str, Item], scorers: Sequence[ItemScorer], configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """Return by what the videos are scored and shown, as last asked for; see ``ASKED``."""
    kinds = dict.fromkeys(item.dimensions for item in items.values())
    judging = [scorer for kind in kinds for scorer in narrowed(scorers, kind)]
    own = {
        name.rpartition("/")[2]: list(item.dimensions)
        for name, item in items.items()
        if item.dimensions
    }
    told = {label: asdict(one) for scorer in judging for label, one in scorer.told().items()}
    return {
        "scorers": {scorer.file: scorer.identity() for scorer in judging},
        "configuration": dict(configuration),
        **({"dimensions": own} if own else {}),
        **({"told": told} if told else {}),
    }


def _check_unique(keys: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, key in keys.items():
        if key in first:
            other, arm = first[key].rpartition("/")[0], name.rpartition("/")[0]
            if other != arm:
                raise UserError(
                    f"the arms {other} and {arm} make the same videos: leave one out, or change it"
                )
            raise UserError(
                f"{first[key]} and {name} are the same video: leave one out, or give another seed"
            )
        first[key] = name


def _plain(made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as it will be read back."""
    plain: dict[str, Any] = yaml.safe_load(_dump(made_of))
    return plain


def _dump(document: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=100)
    return text
