"""First-block cache: where the first block's output has hardly changed, the rest of the network is not run.

From one pass to the next, most of what a network's deeper blocks add to a frame hardly changes. First-block
caching (FBCache of ParaAttention, ``FirstBlockCacheConfig`` in diffusers; the idea is TeaCache's, Liu et al.,
CVPR 2025, arXiv 2411.19108) runs the first block; if what it adds has changed by less than a threshold since
the other blocks were last run, what they added then is reused.

In these works all frames of the clip stand on one level. Here windows slide over frames on many levels, so an
entry belongs to a frame and a branch of guidance, not to a place in a window:

* A row (one window with its prompt, or its unconditional half) is decided as a whole, since its frames see
  each other. It is cut short if every frame that it writes was computed before under the same prompt and has
  changed by less than the threshold.
* A change is always measured against the pass in which the other blocks were last run, not against the
  previous pass. So changes cannot add up unseen, and the number of consecutive skips needs no limit.
* Frames that are only read (guidance frames and context) neither have nor need an entry for the row: their
  output is thrown away. They still affect the decision, since the first block attends to them.
* Candidates of a search are other versions of frames that the queue holds: they are computed in full and
  leave no entries. A frame's entries are dropped when other noise takes its place, and when it leaves.

Windows of one pass write different frames, and read only their own entries. So the video does not depend on
how rows are batched, unless a change equals the threshold to the last bits.

A frame that is being denoised takes the memory of two hidden states of the network, twice that with guidance:
38 MB on Wan2.1 1.3B at 480x832, whose tokens are float32 between layers, so that a queue of 308 latents takes
12 GB. How many windows a call holds is chosen without it: where memory is short, give ``batch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miga_bench.backbones.base import Rows


@dataclass(frozen=True)
class CachedRow:
    """How the cache identifies a row of a denoiser call.

    Attributes:
        frames: Numbers of the frames that it writes.
        offset: Place of the first of them in the row; the others follow.
        segment: Number of the prompt; None is the unconditional half.
    """

    frames: Sequence[int]
    offset: int
    segment: int | None

    @property
    def places(self) -> slice:
        """The frames that it writes."""
        return slice(self.offset, self.offset + len(self.frames))

    @property
    def keys(self) -> list[tuple[int, bool]]:
        """Return the keys of the frames' entries."""
        return [(frame, self.segment is None) for frame in self.frames]


@dataclass(frozen=True)
class Entry:
    """A frame in the last pass in which the whole network was run for it.

    Attributes:
        segment: Number of the prompt, None for the unconditional half.
        first: What the first block added, ``[...]`` in the network's own layout.
        deep: What all further blocks added, likewise.
    """

    segment: int | None
    first: Tensor
    deep: Tensor


class BlockCache:
    """The entries of one video: at most two for each frame that is being denoised.

    Args:
        threshold: Change below which a frame is not computed again, above 0: the mean absolute difference of
            what the first block adds, divided by its mean absolute value.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.entries: dict[tuple[int, bool], Entry] = {}

    def forget(self, frames: Iterable[int]) -> None:
        """Drop the entries of frames that are gone, or begin anew from other noise."""
        for frame in frames:
            for unconditional in (False, True):
                self.entries.pop((frame, unconditional), None)

    def call(self, rows: Sequence[CachedRow | None]) -> CachedCall:
        """Return the shortcut of one denoiser call; rows that are None are run in full and not kept."""
        return CachedCall(self, rows, {})


class CachedCall:
    """The shortcut of one denoiser call; see ``Shortcut``.

    Nothing is kept before ``settle``, so a call that fails can be made again, in parts too.
    """

    def __init__(
        self,
        cache: BlockCache,
        rows: Sequence[CachedRow | None],
        found: dict[int, list[Entry]],
        start: int = 0,
    ) -> None:
        self._cache, self._rows, self._found, self._start = cache, rows, found, start

    def part(self, rows: slice) -> CachedCall:
        """Return the shortcut for a run of the call's rows."""
        start = self._start + rows.indices(len(self._rows))[0]
        return CachedCall(self._cache, self._rows[rows], self._found, start)

    @property
    def skipped(self) -> int:
        """Rows of the call that were cut short."""
        return sum(not entries for entries in self._found.values())

    def settle(self) -> int:
        """Keep what was computed; return how many rows were cut short."""
        for number, entries in self._found.items():
            row = self._rows[number]
            assert row is not None
            # a row that was cut short has none
            self._cache.entries.update(zip(row.keys, entries, strict=False))
        return self.skipped

    def __call__(self, before: Tensor, after: Tensor, rest: Callable[[Rows], Tensor]) -> Tensor:
        """Run ``rest`` for the rows that need it, and recall it for the others."""
        added = after - before
        kept = self._kept(added)
        needy = [number for number in range(len(self._rows)) if number not in kept]
        if not kept:
            last = out = rest(slice(None))  # the very call that there would be without a cache
        else:
            out = after.clone()
            if needy:
                picked = torch.tensor(needy, device=after.device)
                last = rest(picked)
                out.index_copy_(0, picked, last.to(out.dtype))
        for number, entries in kept.items():
            row = self._rows[number]
            assert row is not None
            out[number, row.places] += torch.stack([entry.deep for entry in entries])
            self._found[self._start + number] = []
        for place, number in enumerate(needy):
            row = self._rows[number]
            if row is None:
                continue
            deep = last[place, row.places] - after[number, row.places]
            # clones, or one frame would keep the tensors of all
            self._found[self._start + number] = [
                Entry(row.segment, first.clone(), rest_of_it.clone())
                for first, rest_of_it in zip(added[number, row.places], deep, strict=True)
            ]
        return out

    def _kept(self, added: Tensor) -> dict[int, list[Entry]]:
        """Return the rows to cut short, with the entries of the frames they write."""
        known: dict[int, list[Entry]] = {}
        changes = []
        for number, row in enumerate(self._rows):
            if row is None:
                continue
            entries = [e for key in row.keys if (e := self._cache.entries.get(key)) is not None]
            if len(entries) < len(row.frames) or any(e.segment != row.segment for e in entries):
                continue
            known[number] = entries
            stored = torch.stack([entry.first for entry in entries])
            changes.append(relative_change(added[number, row.places], stored).max())
        if not known:
            return {}
        found = torch.stack(changes).tolist()  # one wait for the device
        return {
            number: entries
            for (number, entries), change in zip(known.items(), found, strict=True)
            if change < self._cache.threshold
        }


def relative_change(now: Tensor, then: Tensor) -> Tensor:
    """Return for frames ``[F, ...]`` the mean of ``|now - then|`` over that of ``|then|``, ``[F]`` float32."""
    then = then.float().flatten(1)
    difference = now.float().flatten(1) - then
    return difference.abs().mean(1) / then.abs().mean(1)
