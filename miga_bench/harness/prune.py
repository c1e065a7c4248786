"""Items that no run names any more: what they take, and how they go.

Runs below a root share their items, so a run's folder that is removed leaves its videos where they are. What
any ``run.yaml`` below the root names stays, and so does what is no item, and an item that is being made. Where
a run may be that cannot be read, nothing goes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.harness.configurations import yaml_of
from miga_bench.harness.formats import check_format
from miga_bench.harness.locks import HeldError, NamedLock
from miga_bench.harness.store import MANIFEST, Store

KEY = re.compile(r"[0-9a-f]{16}")
NO_RUNS = ("items", "mlartifacts")  # folders of the root that are large, and hold none
OF_A_RUN = ("videos", "status.json", "prompts.json")


@dataclass(frozen=True)
class Unnamed:
    """An item that no run names.

    Attributes:
        key: The item's.
        size: Bytes of its files.
    """

    key: str
    size: int


def unnamed_items(root: Path) -> list[Unnamed]:
    """Return the items below a root that no run names, by key.

    Args:
        root: The folder above all runs.

    Raises:
        UserError: There are no items below it, other roots may share them, or a run cannot be read.
    """
    folder = root / "items"
    if not folder.is_dir():
        raise UserError(f"{root} has no folder items: give the folder above your runs (run.root)")
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link, so that runs elsewhere may name its items: give the folder that it is in"
        )
    named = _named_by(list(_run_files(root)))
    there = (path for path in folder.iterdir() if KEY.fullmatch(path.name))
    return [
        Unnamed(path.name, _size(path))
        for path in sorted(there)
        if path.name not in named and path.is_dir() and not path.is_symlink()
    ]


def _run_files(root: Path) -> Iterator[Path]:
    """Yield every ``run.yaml`` at and below a root's folders, however deep.

    Raises:
        UserError: A folder cannot be looked at, or holds a run without one.
    """

    def refuse(why: str, path: object) -> UserError:
        return UserError(
            f"{path} {why}, and may hold a run that names any item: nothing is deleted; mend or move it"
        )

    def unreadable(error: OSError) -> None:
        raise refuse("cannot be looked into", error.filename) from None

    seen = set()
    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(here.resolve())
        if here == root:
            folders[:] = [name for name in folders if name not in NO_RUNS]
        if "run.yaml" in files:
            folders.clear()
            yield here / "run.yaml"
            continue
        if here != root and any(name in OF_A_RUN for name in (*folders, *files)):
            raise refuse("has no run.yaml", here)
        if ".lock" in files and NamedLock(here / ".lock").holder() is not None:
            raise refuse("is a run that is just starting", here)
        for name in files:
            if (here / name).is_symlink() and not (here / name).exists():
                raise refuse("is a link that leads nowhere", here / name)


def _named_by(files: list[Path]) -> set[str]:
    """Return the keys of all items that runs name.

    Raises:
        UserError: A run cannot be read.
    """
    named: set[str] = set()
    for path in files:
        try:
            document = yaml_of(path.read_text(encoding="utf-8"))
            check_format(document, document.get("provenance"))
            keys = list(document["items"].values())
            if not all(isinstance(key, str) and KEY.fullmatch(key) for key in keys):
                raise ValueError("its items have no keys")
            named.update(keys)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read ({' '.join(str(error).split())}), and may name any item: nothing is"
                " deleted; mend that run, or move its folder away"
            ) from error
    return named


def delete(
    root: Path, items: list[Unnamed], progress: Callable[[], None]
) -> tuple[list[Unnamed], dict[str, str]]:
    """Delete items, but what a run names by now, or somebody makes.

    Args:
        root: The folder above all runs.
        items: As ``unnamed_items`` found them.
        progress: Called after each item.

    Returns:
        Those that are gone, and why the others are not, by key.

    Raises:
        UserError: A run cannot be read.
    """
    store, gone, kept = Store(root), [], {}
    known: dict[Path, int] = {}
    named: set[str] = set()
    for item in items:
        lock = NamedLock(store.locks / item.key)
        try:
            lock.acquire()
            runs = {path: path.stat().st_mtime_ns for path in _run_files(root)}
            if runs != known:
                known, named = runs, _named_by(list(runs))
            if item.key in named:
                kept[item.key] = "a run names it by now"
            else:
                # first what vouches for the rest: half an item is unfinished work
                (store.folder(item.key) / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(store.folder(item.key))
                gone.append(item)
        except HeldError as holder:
            kept[item.key] = f"{holder} makes it"
        except FileNotFoundError:
            kept[item.key] = "somebody else has deleted it"
        except OSError as error:
            kept[item.key] = (error.strerror or type(error).__name__).lower()
        finally:
            lock.release()
        progress()
    return gone, kept


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # renamed or deleted meanwhile
            total += 0 if path.is_dir() else path.lstat().st_size
    return total
