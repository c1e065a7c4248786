"""Work dealt out to workers, longest first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Deal work out, longest first, each piece to the rank that has the least so far.

    If several ranks have the same, the one with the fewest pieces gets it: pieces without a known cost are
    spread.

    Args:
        costs: What each piece is expected to take.
        ranks: How many workers.

    Returns:
        For each rank the numbers of its pieces, longest first; every piece is dealt once.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, 0, rank) for rank in range(ranks)]
    for piece in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        load, pieces, rank = heapq.heappop(loads)
        hands[rank].append(piece)
        heapq.heappush(loads, (load + costs[piece], pieces + 1, rank))
    return hands
