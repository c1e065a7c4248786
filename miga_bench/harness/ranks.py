"""What processes of one run do together: agree on what rank 0 found, and wait for the slowest."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from miga_bench.errors import LostError

T = TypeVar("T")

# A rank may be at its last video for hours after the others; a rank that dies is noticed at once.
PATIENCE = timedelta(days=30)


def agree(trainer: Any, decide: Callable[[], T]) -> T:
    """Return what ``decide`` returns on rank 0, on every rank; what it raises there, all raise.

    Args:
        trainer: Lightning's, with its strategy set up.
        decide: Called on rank 0 only; its result or its error must be picklable.
    """
    answer: Any = None
    if trainer.is_global_zero:
        try:
            answer = (True, decide())
        except Exception as error:
            answer = (False, error)
    good, value = trainer.strategy.broadcast(answer)
    if not good:
        raise value
    result: T = value
    return result


class Together:
    """A meeting point of all ranks without the short patience of training's barriers."""

    def __init__(self) -> None:
        self._group: Any = None
        if distributed.is_available() and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)

    def wait(self) -> None:
        """Return when every rank has come here.

        Raises:
            LostError: A rank has died.
        """
        if self._group is None:
            return
        try:
            work = distributed.barrier(self._group, async_op=True)
            while not work.is_completed():  # a plain wait would not hear Ctrl-C
                time.sleep(0.05)
            work.wait()
        except RuntimeError as error:
            raise LostError(
                "another process of the run is gone: the same command makes what is missing"
            ) from error
