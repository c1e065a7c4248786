"""What processes of one run do together: agree on what rank 0 found, and wait for the slowest."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from miga_bench.errors import FailedError, LostError, UserError, in_print

T = TypeVar("T")

# Seconds for all processes to come, which is to import what they need, beside whatever a machine does.
START = 300.0

# A rank may be at its last video for hours after the others, or load from a slow disk. A process that ends
# breaks its connections, which is noticed at once; a machine that vanishes breaks none: see ``Lifeline``.
PATIENCE = timedelta(days=30)

GONE = (
    "another process of the run is gone: see whether the system killed it for lack of memory; the same command"
    " makes what is missing"
)


def gloo_group(timeout: timedelta, ranks: Sequence[int] | None = None) -> Any:
    """Return a new group that meets in main memory; all ranks of the run have to take part in forming it.

    Args:
        timeout: How long one waits for another.
        ranks: Those that belong to it, None for all.

    Raises:
        FailedError: They do not reach each other, as where a machine's name leads it to itself.
        LostError: One of them is gone.
    """
    try:
        return distributed.new_group(ranks, timeout=timeout, backend="gloo")
    except RuntimeError as error:
        if "connectFullMesh" not in str(error):
            raise LostError(GONE) from error
        raise FailedError(
            "the processes of the run do not reach each other: set GLOO_SOCKET_IFNAME on every machine to the"
            " network interface that the machines share, such as eth0"
        ) from error


@dataclass
class _Formed:
    """The group of all ranks that waits as long as it takes, and torch's own, beside which it was formed."""

    first: Any = None
    group: Any = None


_formed = _Formed()


def _everybody() -> Any:
    """Return the group of all ranks that waits as long as it takes; None for a process on its own.

    It is formed at the first call only, when all have just met: whoever forms one with a rank that is gone
    waits for it as long, and nothing but a ``Gathering`` ends that.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    first = distributed.group.WORLD
    if _formed.group is None or _formed.first is not first:
        _formed.group, _formed.first = gloo_group(PATIENCE), first
    return _formed.group


def part() -> None:
    """Leave the other processes' group; all of them have to be done with it.

    Torch's threads, left to the end of Python, may still hold a tensor of the last meeting. Letting go of
    it when Python has begun to end aborts the process, a few times in a thousand.
    """
    if distributed.is_available() and distributed.is_initialized():
        _formed.group = _formed.first = None
        distributed.destroy_process_group()


def agree(trainer: Any, decide: Callable[[], T]) -> T:
    """Return on every rank what ``decide`` returns on rank 0; if it raises there, all ranks raise.

    Args:
        trainer: Lightning's, with its strategy set up.
        decide: Called on rank 0 only, and may take hours; its result must be picklable.

    Raises:
        Exception: What ``decide`` raised, on rank 0, which tells the user.
        UserError: It raised one, on rank 0.
        FailedError: It raised something else, on rank 0.
        LostError: A rank has died.
    """
    answer: Any = None
    own: Exception | None = None
    group = _everybody()
    if trainer.is_global_zero:
        try:
            answer = (decide(), None)
        except Exception as error:
            own, answer = error, (None, _trouble(error))
    if group is not None:
        answers = [answer]
        with _all_alive():
            distributed.broadcast_object_list(answers, src=0, group=group)
        (answer,) = answers
    if own is not None:
        raise _reported(own)
    value, trouble = answer
    if trouble is not None:
        raise _reported(trouble.error())
    result: T = value
    return result


def on_every_rank(trainer: Any, work: Callable[[], None]) -> None:
    """Do the same on every rank; if it fails on one, all raise, and rank 0 knows the reason.

    Args:
        trainer: Lightning's, with its strategy set up.
        work: What each does.

    Raises:
        Exception: What it raised on rank 0, which tells the user.
        UserError: It is wrong input on some rank.
        FailedError: It raised something else on some rank.
        LostError: A rank has died.
    """
    own: Exception | None = None
    group = _everybody()
    try:
        work()
    except Exception as error:
        own = error
    everybody = [_trouble(own)]
    if group is not None:
        everybody *= trainer.world_size
        with _all_alive():
            distributed.all_gather_object(everybody, everybody[0], group)
    if own is not None and trainer.is_global_zero:
        raise _reported(own)
    for rank, trouble in enumerate(everybody):
        if trouble is not None:
            raise _reported(trouble.error(f"process {rank}: "))


def same_everywhere(trainer: Any, keys: Sequence[str]) -> None:
    """Refuse ranks that would make different videos from rank 0.

    Args:
        trainer: Lightning's, with its strategy set up.
        keys: Of this rank's items, all of the run.

    Raises:
        UserError: The keys of a rank differ.
    """
    first = agree(trainer, lambda: list(keys))

    def check() -> None:
        if first != list(keys):
            raise UserError(
                "this process would make different videos from process 0 with the same configuration: give all"
                " processes the same weights, versions and kind of GPU, or set trainer.precision"
            )

    on_every_rank(trainer, check)


@dataclass(frozen=True)
class _Trouble:
    """What other ranks are told of an error: its kind, its text and its traceback."""

    kind: type[UserError | FailedError]
    text: str
    trace: str

    def error(self, where: str = "") -> UserError | FailedError:
        """Return an error that tells of it, with words before its text."""
        told = self.kind(f"{where}{self.text}")
        told.add_note(self.trace)
        return told


def _trouble(error: Exception | None) -> _Trouble | None:
    """Return what other ranks are told of an error."""
    if error is None:
        return None
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, (UserError, FailedError)):
        kind = UserError if isinstance(error, UserError) else FailedError
        return _Trouble(kind, str(error), trace)
    return _Trouble(FailedError, in_print(f"{type(error).__name__}: {error}"), trace)


def _reported(error: Exception) -> Exception:
    """Mark an error as shown to the user, which rank 0 does; all ranks raise it, or what tells of it."""
    with suppress(AttributeError):  # of a class that takes none
        error.reported = True  # type: ignore[attr-defined]
    return error


class Gathering:
    """Ends this process if not all processes of the run come to their first meetings.

    Lightning holds one, then groups are formed. One of the processes may have died on the way, or may never
    have been started. Torch would wait half an hour for it, or ``PATIENCE``, in a call that hears nothing.

    Args:
        trainer: Lightning's, before it does anything.
    """

    def __init__(self, trainer: Any) -> None:
        self._ranks = trainer.world_size
        self._timer = threading.Timer(START, self._give_up)
        if self._ranks > 1:
            self._timer.daemon = True
            self._timer.start()

    def done(self) -> None:
        """All are there, and every group is formed."""
        self._timer.cancel()

    def met(self, within: float) -> bool:
        """Return whether all are there, after so many seconds at most."""
        return self._timer.finished.wait(within)

    def _give_up(self) -> None:
        print(
            f"miga-bench: not all of the {self._ranks} processes of the run came within {START:.0f} s:"
            " see why the others did not start (their output, trainer.devices, the network); nothing"
            " was made yet, and the same command begins again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread is deep in native code, and nothing is held yet


class Together:
    """A meeting point of all ranks without the short patience of training's barriers."""

    def __init__(self) -> None:
        self._group = _everybody()

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Return when every rank has come here.

        Args:
            meanwhile: Called again and again while some have not.

        Raises:
            LostError: A rank has died.
        """
        if self._group is None:
            return
        with _all_alive():
            work = distributed.barrier(self._group, async_op=True)
            while not work.is_completed():  # a plain wait would not hear Ctrl-C
                meanwhile()
                time.sleep(0.05)
            work.wait()

    def gather(self, mine: Iterable[str]) -> set[str]:
        """Return on every rank what all of them give; all must have come, see ``wait``.

        Raises:
            LostError: A rank has died.
        """
        everybody: list[Any] = [list(mine)]
        if self._group is not None:
            everybody *= distributed.get_world_size()
            with _all_alive():
                distributed.all_gather_object(everybody, list(mine), self._group)
        return {one for each in everybody for one in each}


@dataclass(frozen=True)
class Wait:
    """That this process waits for others: which ranks, and since when, by ``time.monotonic``."""

    ranks: frozenset[int]
    since: float


_waits: list[Wait] = []


def current_wait() -> Wait | None:
    """Return what this process's main thread waits for now; None if it works."""
    return next(iter(_waits), None)


@contextmanager
def waiting_for(ranks: Iterable[int]) -> Iterator[None]:
    """Let it be known that this process waits for other ranks in the block, maybe in native code."""
    _waits.append(Wait(frozenset(ranks), time.monotonic()))
    try:
        yield
    finally:
        _waits.pop()


@contextmanager
def _all_alive() -> Iterator[None]:
    """Wait for all ranks in the block, and turn their group's error about one that has died into ours."""
    try:
        with waiting_for(range(distributed.get_world_size())):
            yield
    except RuntimeError as error:
        raise LostError(GONE) from error
