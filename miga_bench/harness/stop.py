"""Ctrl-C, SIGTERM and the signal before a SLURM job's end as one exception, never in the middle of a write."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn


class StopRequested(KeyboardInterrupt):
    """The user (or the system) asked to end; ``signal`` says how."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class StopSignals:
    """While active, SIGINT and SIGTERM raise ``StopRequested`` in the main thread.

    In a SLURM job so does SIGUSR1, unless somebody listens to it: ``sbatch --signal=USR1@120`` has it sent two
    minutes before the job's time is over, and it would end the process at once.

    Inside ``shielded()`` the exception waits until the block has ended, so that a frame is decoded
    and written whole or not at all. After the first stop further signals are ignored: what is left
    is to close the files.

    Attributes:
        signal: The signal that asked to stop, None as long as none did.
    """

    def __init__(self) -> None:
        self._shields = 0
        self._waiting: int | None = None
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        """Listen."""
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listen no more."""
        self.rest()

    def listen(self) -> None:
        """Take over the signals, again if somebody took them meanwhile; no-op outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if "SLURM_JOB_ID" in os.environ and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
                numbers.append(signal.SIGUSR1)
            for number in numbers:
                before = signal.signal(number, self._handle)
                if before != self._handle:
                    self._previous[number] = before

    def rest(self) -> None:
        """Give the signals back to their last holders, unless somebody has taken them already."""
        while self._previous:
            number, before = self._previous.popitem()
            # ignored: by Lightning, while it ends
            if signal.getsignal(number) in (self._handle, signal.SIG_IGN):
                signal.signal(number, before)  # type: ignore[arg-type]

    @property
    def waiting(self) -> int | None:
        """The signal that is held back, None if there is none."""
        return self._waiting

    def follow(self, number: int) -> NoReturn:
        """Stop as another process was asked to, even behind a shield.

        Raises:
            StopRequested: Always.
        """
        self.signal, self._waiting = number, None
        raise StopRequested(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a stop back, even past the block's end: ``waiting`` tells of it, and a shield's end obeys it."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._shields:
            self._waiting = number
        elif self.signal is None:
            self.signal = number
            raise StopRequested(number)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold a stop back until the block has ended."""
        with self.held():
            yield
        if self._waiting is not None and not self._shields:
            number, self._waiting = self._waiting, None
            self._handle(number, None)
