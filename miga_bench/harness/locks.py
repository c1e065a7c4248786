"""Locks on files that end with their process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from miga_bench.errors import UserError
from miga_bench.harness.files import nearest
from miga_bench.harness.machine import started

# what file systems without locks answer; the last two are one number on Linux, two on macOS
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class HeldError(Exception):
    """Another process holds the lock; the text says which.

    Attributes:
        elsewhere: Whether the holder says that it is on another machine.
    """

    def __init__(self, told: bytes) -> None:
        super().__init__(_describe(told))
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            holder = json.loads(told)
            mine, its = started(), holder.get("started")
            if mine and its:
                self.elsewhere = its != mine
            else:
                self.elsewhere = holder["host"] != socket.gethostname()

    elsewhere = False


def check_lockable(folder: Path) -> None:
    """Refuse a folder whose file system has no locks (it need not exist yet); nothing is left there.

    Raises:
        UserError: It has none.
    """
    place = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNKNOWN:
            raise UserError(
                f"{place} takes no locks ({error.strerror}), without which two processes could write one"
                " video: have it mounted with them (NFS with its lock service, Lustre with -o flock), or"
                " choose another run.root"
            ) from None
        raise


class NamedLock:
    """An exclusive lock; the operating system releases it when the holder dies.

    Args:
        path: The lock's file; it holds who has the lock, and stays when nobody has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def acquire(self, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: Wait until the holder lets go.

        Raises:
            HeldError: Somebody has it, and we do not wait.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered: what does not fit on the disk must not be tried again when the file is closed
        file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed by release()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = HeldError(file.read())
            file.close()
            raise holder from None
        except BaseException:
            file.close()
            raise
        self._file = file
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        told = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": since,
            "started": started(),
        }
        with suppress(OSError):  # on a full disk it is a lock all the same
            file.truncate(0)
            file.write(json.dumps(told).encode())

    def holder(self) -> str | None:
        """Return who has the lock, None if nobody does; nothing is written."""
        try:
            with open(self.path, "rb") as file:
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
            file, self._file = self._file, None
            with suppress(OSError):
                file.truncate(0)
            file.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, and hold it until the block has ended."""
        self.acquire(wait=True)
        try:
            yield
        finally:
            self.release()


def _describe(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']:d} on {holder['host']:.64s}, since {holder['since']:.32s}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process"  # it has just taken the lock, and not said so yet
