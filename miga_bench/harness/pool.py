"""Many pieces of work, each done by one of a few processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_done(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    begin: Callable[..., None] | None = None,
    *arguments: Any,
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with its result, in the order in which they finish.

    However this ends, by an error, a stop, a reader that wants no more or a kill, no process is left.

    Args:
        work: A function that other processes can import; it gets one thread there.
        items: What to work on; begun in this order.
        processes: How many at a time.
        begin: What each process does first.
        *arguments: Of ``begin``.

    Raises:
        Exception: What ``work`` raised in its process; the other items are given up.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (begin, *arguments)) as pool:
        try:
            futures = {pool.submit(work, item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            _give_up(pool)
            raise


def _begin(begin: Callable[..., None] | None, *arguments: Any) -> None:
    """Take one thread, and end with the parent however it ends."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _give_up(pool: ProcessPoolExecutor) -> None:
    """End the workers, or their items would be finished before the error is seen."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()  # a worker that makes a video takes SIGTERM for a wish to end that video only
    # The pool's own thread waits for its workers too, and of two who wait only one is told that a
    # process has ended. So it goes first, and is waited for: killed, they cannot hold it up.
    pool.shutdown(cancel_futures=True)
    for child in children:
        child.join()  # one the pool was stopped in the middle of starting
