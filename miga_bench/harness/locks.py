"""Locks on files that end with their process, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO


class HeldError(Exception):
    """Another process holds the lock; the text says which."""


class FileLock:
    """An exclusive lock; the operating system lets go of it when the holder dies.

    Args:
        path: The lock's file; it holds who has the lock, and stays when nobody has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: Wait until the holder lets go.

        Raises:
            HeldError: Somebody has it, and we do not wait.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - closed by release()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = _describe(file.read())
            file.close()
            raise HeldError(holder) from None
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        self._file = file

    def holder(self) -> str | None:
        """Return who has the lock, None if nobody does; nothing is written."""
        try:
            with open(self.path, encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return _describe(file.read())
        except FileNotFoundError:
            pass
        return None

    def release(self) -> None:
        """Let go; letting go twice does nothing."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, and hold it until the block has ended."""
        self.acquire(wait=True)
        try:
            yield
        finally:
            self.release()


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
    except json.JSONDecodeError:  # it has just taken the lock, and not said so yet
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
