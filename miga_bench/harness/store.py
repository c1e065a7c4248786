"""Items on disk: a folder per item, shared by all runs below one root.

``ROOT/items/KEY`` holds ``video.mp4``, ``sheet.png``, ``passes.jsonl``, for a failure ``error.txt``, and
``manifest.json``, which is written last and whole: a folder without it is unfinished work, and is made
anew. So is one whose files are not those that the manifest vouches for, or whose manifest is not as it was
written. Scores of the video come later, a file per scorer in ``scores/``. All that differs between two
makings of the same item by as many processes lies under the manifest's ``timings`` and in its seal; a larger
team makes stage 2 in fewer, larger passes, and rounds otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miga_bench.harness.formats import check_format
from miga_bench.harness.items import Item
from miga_bench.harness.scorers import ItemScorer, narrowed
from miga_bench.harness.seals import opened

VIDEO, SHEET, PASSES, ERROR, MANIFEST = (
    "video.mp4",
    "sheet.png",
    "passes.jsonl",
    "error.txt",
    "manifest.json",
)
SCORES = "scores"
# What every manifest has, and of which kind; what else is in it is for the record.
_KINDS: dict[str, Any] = {
    "status": str,
    "error": (str, type(None)),
    "frames": int,
    "frame_rate": (int, float),
    "cost": dict,
    "files": dict,
    "timings": dict,
}
Manifest = dict[str, Any]
# Errors that say what is there; others, such as of a file server that is away, pass.
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# What this process has read or written, whichever store asked: inode, size and time of change, and the hash.
_HASHED: dict[Path, tuple[tuple[int, ...], str]] = {}


class Store:
    """The items below a root, as they are read; ``making`` makes them.

    Args:
        root: The folder above all runs.

    Attributes:
        root: As given.
        locks: Folder of the items' locks, which all that write below the root have in common.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.locks = root, root / "items" / ".locks"

    def folder(self, key: str) -> Path:
        """Return where an item lies."""
        return self.root / "items" / key

    def manifest(self, key: str) -> Manifest | None:
        """Return an item's manifest, None if the item is unfinished, or something in it is broken or unread."""
        try:
            return self.read_checked(key)
        except OSError:
            return None

    def read_checked(self, key: str) -> Manifest | None:
        """Return an item's manifest, None if the item is unfinished or something in it is broken.

        Raises:
            OSError: Something cannot be read now, which says nothing of what is there.
        """
        try:
            return self._manifest(self.folder(key))
        except (*_NOT_THERE, ValueError):
            return None
        except OSError as error:
            folder = self.folder(key)
            raise OSError(
                f"{Path(error.filename or MANIFEST).name} cannot be read ({error.strerror or error}): left as"
                f" it is; the same command tries again, and makes it anew where {folder} is deleted"
            ) from error

    def read_unchecked(self, key: str) -> Manifest | None:
        """Return an item's manifest as it was written, None if there is none; no other file is looked at."""
        try:
            return _read(self.folder(key))[0]
        except (OSError, ValueError):
            return None

    def damage(self, key: str) -> str | None:
        """Return what is broken in a finished item; None if nothing is, or unread, or it was never finished."""
        try:
            self._manifest(self.folder(key))
        except _NOT_THERE as error:
            name = Path(error.filename).name
            return None if name == MANIFEST else f"{name} is gone"
        except OSError:
            return None
        except ValueError as error:
            return str(error)
        return None

    def _manifest(self, folder: Path) -> Manifest:
        """Read a manifest and hold the files against it.

        Raises:
            OSError: It or one of the files cannot be read.
            ValueError: It or one of them is broken; the text says which.
        """
        manifest, facts = _read(folder)
        for name, (size, digest) in facts.items():
            if (folder / name).stat().st_size != size or self._sha256(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
        return manifest

    def _sha256(self, path: Path) -> str:
        """Return a file's hash; a process reads each file once, unless it is written anew."""
        stamp, known = _stamp(path), _HASHED.get(path.absolute())
        if known is None or known[0] != stamp:
            with open(path, "rb") as file:
                known = stamp, hashlib.file_digest(file, "sha256").hexdigest()
            _HASHED[path.absolute()] = known
        return known[1]

    def is_done(self, key: str) -> bool:
        """Tell whether an item is made and whole; a failed one is not."""
        manifest = self.manifest(key)
        return manifest is not None and manifest["status"] == "done"

    def unscored(
        self, item: Item, scorers: Sequence[ItemScorer], manifest: Manifest | None = None
    ) -> list[ItemScorer]:
        """Return the scorers whose scores of an item are not there; scores of another file do not count.

        Args:
            item: Scored by its own dimensions.
            scorers: Those that are wanted.
            manifest: The item's, where the caller has it.
        """
        manifest = manifest or self.manifest(item.key)
        sha = None if manifest is None else manifest["files"].get(VIDEO, {}).get("sha256")
        own = narrowed(scorers, item.dimensions)
        return [scorer for scorer in own if self.scores(item.key, scorer.file, sha) is None]

    def scores(self, key: str, file: str, sha: str | None) -> dict[str, Any] | None:
        """Return what a scorer found, None if it lies there broken, of another video, or not at all.

        Args:
            key: The item's.
            file: The scorer's ``file``.
            sha: The video's hash, None if there is no video.
        """
        try:
            found = opened((self.folder(key) / SCORES / file).read_bytes())
        except (OSError, ValueError):
            return None
        parts = ("scores", "reasons", "series")
        good = sha is not None and found.get("video") == sha
        if not good or not all(isinstance(found.get(n), dict) for n in parts):
            return None
        return found


def _read(folder: Path) -> tuple[Manifest, dict[str, tuple[int, str]]]:
    """Read a manifest; return it, and size and hash of each of its files.

    Raises:
        OSError: It cannot be read.
        ValueError: It is broken, or of another format.
    """
    raw = (folder / MANIFEST).read_bytes()
    try:
        manifest = opened(raw)
        check_format(manifest, manifest)
        return manifest, _files_of(manifest)
    except ValueError as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from None


def _files_of(manifest: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return size and hash of each file of a manifest.

    Raises:
        ValueError: It is no manifest, or names a file that no item has.
    """
    if not all(isinstance(manifest.get(name), kind) for name, kind in _KINDS.items()):
        raise ValueError("no manifest")
    try:
        files = {n: (int(f["bytes"]), str(f["sha256"])) for n, f in manifest["files"].items()}
    except (TypeError, KeyError, ValueError):
        raise ValueError("no list of files") from None
    if not files.keys() <= {VIDEO, SHEET, PASSES, ERROR}:
        raise ValueError("a file of something else")
    if manifest["status"] == "done" and VIDEO not in files:
        raise ValueError("no video")
    return files


def _stamp(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def facts_of(path: Path) -> dict[str, Any]:
    """Return a file's size and hash, once it is on disk for good: the manifest vouches for it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stamp = _stamp(path)
    _HASHED[path.absolute()] = stamp, digest
    return {"bytes": stamp[1], "sha256": digest}
