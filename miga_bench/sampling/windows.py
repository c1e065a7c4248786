"""Window plans: which slots each denoiser call of a pass reads and writes. Index arithmetic only.

A pass takes every slot of the queue down one level. A plan is a list of windows, front to back, whose
writes cover the queue exactly once. FIFO keeps the noisier half of each window and uses the cleaner
half as context (FIFO-Diffusion, section 4); MIGA keeps the cleaner side and uses the noisier rest
as look-ahead, after a prefix of guidance frames (MIGA, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reach = Literal["chunks", "head", "anchor"]


@dataclass(frozen=True)
class Window:
    """One denoiser call.

    Attributes:
        reads: Slots the denoiser sees, in its order; guidance frames first.
        writes: Slots that take the result.
        offset: Place in ``reads`` of the first written slot; the written ones follow it.
        anchored: Whether the anchors are prepended to ``reads``.
    """

    reads: tuple[int, ...]
    writes: range
    offset: int
    anchored: bool = False


def partition(length: int, stride: int, local: int, shift: int) -> list[range]:
    """Cut ``length`` slots into write ranges of at most ``stride``, the last one of ``local``.

    A rotating ``shift`` moves the cuts from pass to pass, since cuts that stay in place would show as jitter.
    What does not fill a stride stands before the last range.

    Args:
        length: Slots in the queue.
        stride: Slots written per window.
        local: Slots a window sees besides its guidance frames.
        shift: Length of the first range; taken as 0 where the queue is too short for it.
    """
    if length <= local:
        return [range(length)]
    if length - shift < local:
        shift = 0
    cuts = [0] if shift == 0 else [0, shift]
    cuts += range(shift + stride, length - local + 1, stride)
    if cuts[-1] != length - local:
        cuts.append(length - local)
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], length], strict=True)]


def growth_partition(length: int, stride: int, local: int) -> list[range]:
    """Cut as ``partition`` does, with the remainder at the front; for a queue that still grows."""
    return partition(length, stride, local, max(length - local, 0) % stride)


def guidance_slots(start: int, count: int, zigzag: int, reach: Reach) -> tuple[int, ...]:
    """Return the slots of the guidance frames of a window that starts at ``start``, oldest first.

    ``chunks`` (as released): the middle latent of each of the ``count`` chunks before the window, or,
    where there are not that many, ``count`` slots evenly spaced before it. ``head`` (the paper's
    formula, ``[z^1 .. z^m, z^l .. z^(l+f0-m-1)]`` for l > m): the first ``count`` slots.
    ``anchor`` takes nothing from the queue. A window that starts within the first ``count`` slots has none.
    """
    if count == 0 or start < count or reach == "anchor":
        return ()
    if reach == "head":
        return tuple(range(count))
    if start < count * zigzag:
        step = start // count
        return tuple(start - k * step for k in range(count, 0, -1))
    middle = max(1, zigzag // 2)
    return tuple(start - middle - k * zigzag for k in range(count - 1, -1, -1))


def miga_windows(
    ranges: list[range],
    length: int,
    window: int,
    guidance: int,
    zigzag: int,
    reach: Reach,
) -> list[Window]:
    """Plan a pass of MIGA: each range is the start of a window with guidance frames before it.

    Args:
        ranges: Write ranges that cover the queue.
        length: Slots in the queue.
        window: f0, frames the denoiser sees at once.
        guidance: m, guidance frames of a window.
        zigzag: L_zig, slots of a chunk.
        reach: Where guidance frames come from; see ``guidance_slots``.
    """
    plan = []
    for writes in ranges:
        start = writes.start
        guides = guidance_slots(start, guidance, zigzag, reach)
        anchored = reach == "anchor" and guidance > 0
        local = window - (guidance if anchored else len(guides))
        reads = (*guides, *range(start, min(start + local, length)))
        plan.append(Window(reads, writes, len(guides), anchored))
    return plan


def fifo_windows(length: int, window: int, context: int, front: int | None = None) -> list[Window]:
    """Plan a pass of FIFO: from the back, each window writes all but its first ``context`` slots.

    ``context`` is 0 without lookahead denoising and about half a window with it. The front window may overlap
    the next one's reads, and writes what is left.

    Args:
        length: Slots in the queue, at least a window.
        window: Slots that the denoiser sees.
        context: Slots that a window reads and does not write.
        front: First slot that is written, at most ``context``; None where the queue's first ``context``
            slots are all clean.
    """
    front = context if front is None else front
    plan = []
    stop = length
    while stop > front:
        first = max(stop - window, 0)
        start = first + context if first else front
        reads = tuple(range(first, min(first + window, length)))
        plan.append(Window(reads, range(start, stop), start - first))
        stop = start
    return plan[::-1]


def windows_of_last_passes(plan: list[Window], front: int) -> list[int]:
    """Return how many windows, from the front, each of a queue's last passes needs; no result changes.

    After every pass the queue moves up one slot, and slot ``front`` is handed out. So of the last pass only
    that slot matters, of the pass before only that slot and what the last pass reads, and so on.

    Args:
        plan: The windows of every pass, front to back.
        front: Slot that is handed out after a pass.

    Returns:
        Counts by the number of passes that are still to come; beyond their end, all windows are needed.
    """
    counts: list[int] = []
    wanted = {front}
    while True:
        count = 1 + max(k for k, window in enumerate(plan) if not wanted.isdisjoint(window.writes))
        if count == len(plan):
            return counts
        counts.append(count)
        wanted = {slot + 1 for slot in wanted.union(*(window.reads for window in plan[:count]))}


def independent_groups(plan: list[Window], in_place: bool) -> list[list[Window]]:
    """Split a plan into runs of windows that may share one batch.

    On a snapshot of the queue all windows may. In place, front to back, a window that reads what an
    earlier one of the run writes must wait for it.
    """
    if not in_place:
        return [plan]
    groups: list[list[Window]] = []
    written: set[int] = set()
    for window in plan:
        if not groups or not written.isdisjoint(window.reads):
            groups.append([])
            written = set()
        groups[-1].append(window)
        written.update(window.writes)
    return groups
