"""Turns of threads that share a backbone: one uses it at a time, and whoever waits comes next."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from weakref import WeakKeyDictionary

from miga_bench.backbones.base import Backbone


class _Mine(threading.local):
    """What a thread itself holds.

    Attributes:
        depth: How many times it has taken the turn and not ended it.
    """

    depth = 0


class Turn:
    """What a thread holds while it uses a backbone; it may take it again while it has it.

    A lock alone would often go back to whoever has just let go of it, however long others wait.
    """

    def __init__(self) -> None:
        self._own, self._mine = threading.RLock(), _Mine()
        self._next = threading.Lock()  # of the one who waits first; the others wait for this

    def __enter__(self) -> None:
        """Wait for the turn."""
        if not self._mine.depth:
            with self._next:
                self._own.acquire()
        self._mine.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, unless a signal ended the wait of ``let_go``."""
        self._mine.depth = max(0, self._mine.depth - 1)
        if not self._mine.depth:
            with suppress(RuntimeError):  # not held
                self._own.release()

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Let others have the turn while the context is entered, and then those who wait.

        To be entered where nothing of the backbone is changed for one's own use. A thread that took the turn
        more than once keeps it.
        """
        if self._mine.depth != 1:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


_TURNS: WeakKeyDictionary[Backbone, Turn] = WeakKeyDictionary()
_CHANGING = threading.Lock()


def turn(backbone: Backbone) -> Turn:
    """Return the turn at a backbone, the same to all who share it."""
    own = Turn()
    with _CHANGING, suppress(TypeError):  # one of the user's own that is no key is not waited for
        return _TURNS.setdefault(backbone, own)
    return own
