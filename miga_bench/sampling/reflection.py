"""Self-reflection (MIGA, section 3.4): watch a similarity while frames are noisy, search when it drops.

The judged chunk is compared with the cleaner chunks right before it, all of them still in the queue. When the
score falls by more than ``threshold`` from one pass to the next, ``candidates`` new tails are drawn and
denoised behind the frozen reference; if the best one scores higher, it replaces the judged chunk and what is
behind it.

The last bits of these scores depend on how many rows a denoiser call has. With another batch, or another
number of processes, a video is the same to float tolerance only as long as no drop comes that close to the
threshold, and no two scores that close to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from miga_bench.sampling.base import Reflected
from miga_bench.sampling.denoise import WindowDenoiser, Work
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.windows import growth_partition, miga_windows

Pooling = Literal["frames", "set"]


def similarity(judged: Tensor, reference: Tensor, pooling: Pooling = "frames") -> Tensor:
    """Score how alike noisy latents are, in ``[-1, 1]``.

    ``q' = norm(mean over channels of q)`` per latent frame; the score is the mean of the cosine
    matrix ``q'_judged q'_reference^T`` (the paper's C). With ``pooling="set"`` each set is averaged over
    its frames first, so that one cosine remains, as the released VideoCrafter2 code does.

    Args:
        judged: ``[F, C, H, W]`` latents of the judged chunk.
        reference: ``[R, C, H, W]`` latents of the reference chunks.
        pooling: ``frames`` as in the paper, or ``set``.
    """

    def pooled(latents: Tensor) -> Tensor:
        maps = latents.mean(1) if pooling == "frames" else latents.mean((0, 1))[None]
        return torch.nn.functional.normalize(maps.flatten(1), dim=1)

    return (pooled(judged) @ pooled(reference).T).mean()


@dataclass
class Reflection:
    """The watch over one queue's tail.

    Attributes:
        denoiser: Runs the search.
        fresh_chunk: ``(frames, purpose, draw) -> Queue``, new slots of pure noise at the top level.
        level: Level of the judged chunk.
        reference: Chunks to compare with, right before the judged one.
        zigzag: L_zig, latents of a chunk.
        window: f0, frames that a window of the search sees.
        stride: Slots a window of the search writes.
        threshold: delta, the drop of the score from one pass to the next that starts a search.
        candidates: n_samp, tails drawn in a search.
        pooling: See ``similarity``.
        shown: Latents of the video that are handed out; a chunk behind them is not judged. None is all.
        last: Score of the previous pass, None before the first and after a change of prompt.
    """

    denoiser: WindowDenoiser
    fresh_chunk: Callable[[list[int], str, int], Queue]
    level: int
    reference: int
    zigzag: int
    window: int
    stride: int
    threshold: float
    candidates: int
    pooling: Pooling
    shown: int | None = None
    last: float | None = None

    def __call__(self, queue: Queue, number: int) -> Reflected | None:
        """Judge the queue after a pass; replace its tail by a better one if the score fell.

        Args:
            queue: Changed when a candidate is adopted.
            number: Number of the pass, so that every search draws noise of its own.

        Returns:
            What was seen and done; None while there is nothing to judge.
        """
        frozen = self.reference * self.zigzag
        start = queue.levels.index(self.level) if self.level in queue.levels else 0
        if start < frozen + self.zigzag:
            return None
        if self.shown is not None and queue.frames[start] >= self.shown:
            return None
        segment = self.denoiser.prompts.segment
        if segment(queue.frames[start + self.zigzag - 1]) != segment(queue.frames[start - frozen]):
            self.last = None  # a scene that should change is no inconsistency
            return None
        reference = queue[start - frozen : start]
        judged = queue.latents[start : start + self.zigzag]
        score = float(similarity(judged, reference.latents, self.pooling))
        before, self.last = self.last, score
        if before is None or before - score <= self.threshold:
            return Reflected(similarity=score)
        tails = self._search(reference, queue.frames[start:], number)
        scores = [self._candidate_score(tail, reference) for tail in tails]
        best = max(range(len(tails)), key=scores.__getitem__)
        if scores[best] <= score:
            return Reflected(similarity=score, triggered=True)
        queue.write(slice(start, len(queue)), tails[best])
        self.denoiser.forget(queue.frames[start:])
        self.last = scores[best]
        return Reflected(similarity=scores[best], triggered=True, accepted=True)

    def _candidate_score(self, tail: Queue, reference: Queue) -> float:
        judged = tail.latents[: self.zigzag]
        return float(similarity(judged, reference.latents, self.pooling))

    def _search(self, reference: Queue, frames: list[int], number: int) -> list[Queue]:
        """Draw and denoise new tails behind the frozen reference, all candidates in one batch.

        A chunk enters before each step, as long as the tail has one (it is short near the video's end), and
        the first of them is taken down to the judged level.
        """
        frozen = len(reference)
        counted = self.denoiser.cost.windows
        rows = [reference] * self.candidates
        for step in range(self.denoiser.schedule.steps - self.level):
            chunk = frames[step * self.zigzag : (step + 1) * self.zigzag]
            if chunk:
                rows = [
                    row + self.fresh_chunk(chunk, f"search {number}", k)
                    for k, row in enumerate(rows)
                ]
            length = len(rows[0])
            ranges = growth_partition(length, self.stride, self.window)
            # What only writes the reference would be thrown away.
            ranges = [r for r in ranges if r.stop > frozen]
            plan = miga_windows(ranges, length, self.window, 0, self.zigzag, "chunks")
            predictions = self.denoiser.predict([Work(row, plan) for row in rows])
            unused = frozen - plan[0].writes.start
            for k, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
                purpose = f"search {number} {k} step"
                rows[k] = reference + self.denoiser.step(row[frozen:], prediction[unused:], purpose)
        self.denoiser.cost.search_windows += self.denoiser.cost.windows - counted
        return [row[frozen:] for row in rows]
