"""ScalingNoise's beams (arXiv 2503.16400): which of them survive, and which of their latents are final."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from miga_bench.sampling.queue import Queue


@dataclass(frozen=True)
class Beam:
    """One queue and what has left it.

    Attributes:
        queue: All slots but the newest, which is being searched for.
        marks: A number per slot; slots with the same number are equal, in any beam.
        waiting: (mark, latent ``[C, H, W]``) of what left the queue and is not handed out yet.
        anchor: ``[C, H, W]``, what left the queue last.
        score: Reward of the newest slot.
    """

    queue: Queue
    marks: tuple[int, ...]
    waiting: tuple[tuple[int, Tensor], ...] = ()
    anchor: Tensor | None = None
    score: float = 0.0


def best(beams: Sequence[Beam]) -> Beam:
    """Return the beam whose newest slot scored highest."""
    return max(beams, key=lambda beam: beam.score)


def select(scores: Tensor, keep: int, greedy: bool, released: bool) -> list[tuple[int, int, int]]:
    """Return the survivors as (beam, other beam, candidate): one beam's queue, the other's newest slots.

    The newest slots are those of the last window, denoised with the candidate at its end. The two beams are
    the same, except where the released code pairs what does not belong together. Of equal scores the earlier
    beam wins, then the earlier candidate.

    Args:
        scores: ``[m, k]``.
        keep: Survivors of a greedy choice, the best first.
        greedy: Keep the best of all candidates; else the best candidate of every beam, in the beams' order.
        released: If not greedy, survivor j gets the queue of the beam that has the j-th best of all
            candidates, and the newest slots of beam j's own best candidate.
    """
    width = scores.shape[1]
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    best = [divmod(place, width) for place in order]
    if greedy:
        return [(beam, beam, number) for beam, number in best[:keep]]
    # Not argmax, which may name any one of equal scores.
    own = enumerate(scores.argsort(dim=1, descending=True, stable=True)[:, 0].tolist())
    if released:
        return [(beam, *newest) for (beam, _), newest in zip(best, own, strict=False)]
    return [(beam, beam, number) for beam, number in own]


def agreed(beams: Sequence[Beam], lag: int, left: int | None) -> tuple[list[Tensor], list[Beam]]:
    """Remove the latents that are final from the beams, and return them.

    A latent is final when all beams have it. When more than ``lag`` wait, or the video ends, the best beam
    decides, and beams that differ from it are replaced by copies of it.

    Args:
        beams: All beams, each with the same number of latents waiting.
        lag: Latents that may wait.
        left: Latents still to be handed out; None if there is no end.

    Returns:
        The final latents ``[C, H, W]`` in order, and as many beams as there were.
    """
    kept, final = list(beams), []
    ending = left is not None and len(kept[0].waiting) >= left
    while kept[0].waiting:
        right = best(kept)
        mark, latent = right.waiting[0]
        if any(beam.waiting[0][0] != mark for beam in kept):
            if len(right.waiting) <= lag and not ending:
                break
            kept = [beam if beam.waiting[0][0] == mark else right for beam in kept]
        final.append(latent)
        kept = [dataclasses.replace(beam, waiting=beam.waiting[1:]) for beam in kept]
    return final, kept
