"""Whether anything may be fetched, and where what took long to get is kept."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from miga_bench.errors import Notice

OFFLINE = ("MIGA_BENCH_OFFLINE", "HF_HUB_OFFLINE")


def downloads_off() -> str | None:
    """Return the environment variable that turns downloads off, None if they are on."""
    on = ("1", "true", "yes", "on")
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in on), None)


def cache_folder(kind: str) -> Path:
    """Return where something is kept for later commands; the folder need not exist.

    Args:
        kind: Name of the folder, below ``$MIGA_BENCH_CACHE`` or ``~/.cache/miga-bench``.
    """
    root = os.environ.get("MIGA_BENCH_CACHE") or Path.home() / ".cache" / "miga-bench"
    return Path(root) / kind


def keep_cache(path: Path, content: bytes, otherwise: str) -> None:
    """Write a cache whole; a folder that takes no more is only a notice.

    Args:
        path: Where it lies; its folder is made.
        content: All of it.
        otherwise: What follows if it cannot be written, and what to do.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        reason = (error.strerror or str(error)).lower()
        warnings.warn(f"{path} cannot be written ({reason}): {otherwise}", Notice, stacklevel=3)


@contextmanager
def offline() -> Iterator[None]:
    """Fetch nothing in the block: what is not on this machine is missing."""
    from huggingface_hub import constants

    before = {name: os.environ.get(name) for name in OFFLINE}
    switch = constants.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    constants.HF_HUB_OFFLINE = True  # was read from the environment when it was imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = switch
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
