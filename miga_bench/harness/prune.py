"""Items that no run names any more: what they take, and how they go.

Runs below a root share their items, so a run's folder that is removed leaves its videos where they are. What
any ``run.yaml`` below the root names stays, and so does what is not an item, and an item that is being made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.harness.configurations import yaml_of
from miga_bench.harness.formats import check_format
from miga_bench.harness.locks import HeldError, NamedLock
from miga_bench.harness.store import MANIFEST, Store

KEY = re.compile(r"[0-9a-f]{16}")


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
        UserError: There are no items below it, or a run cannot be read, and may name any of them.
    """
    folder = root / "items"
    if not folder.is_dir():
        raise UserError(f"{root} has no folder items: give the folder above your runs (run.root)")
    named = named_items(root)
    there = (path for path in folder.iterdir() if KEY.fullmatch(path.name) and path.is_dir())
    return [
        Unnamed(path.name, _size(path))
        for path in sorted(there)
        if path.name not in named and not path.is_symlink()
    ]


def named_items(root: Path) -> set[str]:
    """Return the keys of all items that a run below a root names.

    Raises:
        UserError: A run cannot be read.
    """
    named: set[str] = set()
    for path in sorted(root.glob("*/run.yaml")):
        try:
            document = yaml_of(path.read_text(encoding="utf-8"))
            check_format(document, document.get("provenance"))
            named.update(map(str, document["items"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read ({' '.join(str(error).split())}), and may name any item: nothing is"
                " deleted; move that run's folder away if you do not want it"
            ) from None
    return named


def delete(root: Path, items: list[Unnamed], progress: Callable[[], None]) -> list[Unnamed]:
    """Delete items, and return those that are gone; what a run names by now, or somebody makes, stays.

    Args:
        root: The folder above all runs.
        items: As ``unnamed_items`` found them.
        progress: Called after each item.

    Raises:
        UserError: A run cannot be read.
        OSError: A file cannot be deleted.
    """
    store, named, gone = Store(root), named_items(root), []
    for item in items:
        lock = NamedLock(store.locks / item.key)
        try:
            lock.acquire()
        except HeldError:
            progress()
            continue
        try:
            if item.key not in named:
                # first what vouches for the rest: half an item is unfinished work
                (store.folder(item.key) / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(store.folder(item.key))
                gone.append(item)
        finally:
            lock.release()
        progress()
    return gone


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
