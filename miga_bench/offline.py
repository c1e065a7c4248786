"""Whether anything may be fetched, and where what took long to get is kept."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from miga_bench.errors import Notice, UserError

OFFLINE = ("MIGA_BENCH_OFFLINE", "HF_HUB_OFFLINE")


def downloads_off() -> str | None:
    """Return the environment variable that turns downloads off, None if they are on."""
    on = ("1", "true", "yes", "on")
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in on), None)


def cache_folder(kind: str) -> Path:
    """Return where something is kept for later commands; the folder need not exist.

    Args:
        kind: Name of the folder, below ``$MIGA_BENCH_CACHE`` or ``~/.cache/miga-bench``.

    Raises:
        UserError: There is no such home.
    """
    root = Path(os.environ.get("MIGA_BENCH_CACHE") or "~/.cache/miga-bench")
    try:
        return root.expanduser() / kind
    except RuntimeError:
        raise UserError(
            f"{root} is not there, for no home folder is known: set MIGA_BENCH_CACHE to a folder of yours"
        ) from None


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
