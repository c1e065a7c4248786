"""Denoiser calls that run out of memory are repeated as smaller ones.

How many rows fit is an estimate on a GPU, and another program may take memory meanwhile. Rows do not depend
on each other, so a call that fails is repeated in halves, and no later call with rows of this shape is
larger, in this video or the next ones by the same denoiser; every ninth video tries twice as many again, for
whoever took the memory may be gone. The results are those of the whole call to float
tolerance, as with any other batch (see ``reflection.py``). Processes that share a call each do so with their
own rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from miga_bench.backbones.base import Denoiser
from miga_bench.errors import DoesNotFitError, Notice, is_out_of_memory


def ran_out_elsewhere(device: str, texts: bool) -> DoesNotFitError:
    """Return the error for memory that ran out outside denoiser calls, where no batch can be made smaller.

    Args:
        device: Where.
        texts: Whether texts were encoded, else frames decoded.
    """
    what, helps = "decoding frames", "choose a smaller --height and --width, or --offload"
    if texts:
        what = "encoding the text"
        helps = "encode on a larger machine and point MIGA_BENCH_CACHE to a copy of its cache"
    return DoesNotFitError(f"out of memory on {device} while {what}: free some memory, or {helps}")


# What holds the memory of denoisers that share it: a network of VideoCrafter2, a session, an engine.
_HOLDS = ("network", "session", "loaded")
RETRIED = (
    8  # videos before one that tries more; a call that fails once more costs little of so many
)


@dataclass
class Limits:
    """What fits, known from calls that did not: the next video begins with it.

    Attributes:
        most: Largest number of rows that fits, by row shape; only shapes that once ran out of memory are
            listed.
        videos: Since the last try of more.
    """

    most: dict[tuple[int, ...], int] = field(default_factory=dict)
    videos: int = 0

    def begin(self) -> None:
        """Count a video that begins, and now and then allow more."""
        self.videos += 1
        if self.videos > RETRIED:
            self.videos = 0
            self.most = {shape: 2 * rows for shape, rows in self.most.items()}


_LIMITS: WeakKeyDictionary[Any, Limits] = WeakKeyDictionary()


class FittingDenoiser:
    """A denoiser whose calls get smaller when they do not fit; see ``Denoiser``.

    Args:
        denoiser: The one that is called.
        arithmetic: Returns the context of each call; see ``Backbone``.

    Attributes:
        limits: Of all videos by the same denoiser.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._denoiser: Any = denoiser
        self._arithmetic = arithmetic
        self._expected: dict[tuple[int, ...], int] = {}
        self.limits = Limits()
        for held in (*(getattr(denoiser, name, None) for name in _HOLDS), denoiser):
            if held is not None:
                with suppress(TypeError):  # a number, a text: of another meaning, and no key
                    self.limits = _LIMITS.setdefault(held, self.limits)
                    break
        self.limits.begin()

    def expect(self, shape: tuple[int, ...], rows: int) -> None:
        """Make no call of more rows of a shape ``[C, F, H, W]``: more are known not to fit now."""
        self._expected[shape] = rows

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor, **more: Any) -> Tensor:
        """Predict, in as many calls as it takes.

        Raises:
            DoesNotFitError: Not even a single row fits.
        """
        parts: list[Tensor] = []
        done, shape = 0, tuple(latents.shape[1:])
        while done < len(latents):
            left = len(latents) - done
            known = (limits.get(shape, left) for limits in (self.limits.most, self._expected))
            rows = slice(done, done + min(left, *known))
            try:
                others = _of_rows(more, rows)
                with self._arithmetic():
                    part = self._denoiser(latents[rows], timesteps[rows], text[rows], **others)
            except Exception as error:
                if not is_out_of_memory(error, maybe=rows.stop - rows.start > 1):
                    raise
                part = None
            if part is None:  # only now is the error gone, and with it what the failed call held
                self._shrink(rows.stop - rows.start, latents)
                continue
            parts.append(part)
            done = rows.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shrink(self, rows: int, latents: Tensor) -> None:
        if latents.is_cuda:
            torch.cuda.empty_cache()
        elif latents.is_mps:
            torch.mps.empty_cache()
        frames, height, width = latents.shape[2:]
        if rows == 1:
            raise DoesNotFitError(
                f"out of memory on {latents.device} in a denoiser call of a single row ({frames} latent frames"
                f" of {height}x{width}): free some memory, choose a smaller --height and --width or"
                " --offload, or fewer frames where a method makes the whole video at once"
            )
        self.limits.most[tuple(latents.shape[1:])] = most = -(-rows // 2)
        warnings.warn(
            f"out of memory on {latents.device} in a denoiser call of {rows} rows: the video goes on with"
            f" {most} per call; --set batch=N starts with fewer",
            Notice,
            stacklevel=2,
        )


def _of_rows(more: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Return a call's further arguments for some of its rows; only a shortcut tells rows apart."""
    shortcut = more.get("shortcut")
    return more if shortcut is None else {**more, "shortcut": shortcut.part(rows)}
