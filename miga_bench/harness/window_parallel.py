"""Several processes make one video: each denoises a part of a pass's rows, and all of them get all rows.

Every process runs the same sampler on the same noise, so everything but the denoiser is done by each of
them, and none ever has to be told what another's queue holds. A denoiser call is cut into one share of
rows per process; a window's row and its unconditional half are rows like any others, so that even the
single window of a short clip or of a whole-video method is spread over two processes. A share
without rows costs nothing but waiting.

The predictions travel as float32, which holds float16 and bfloat16 exactly. A row's result does not depend on
what its neighbors hold, but its last bits may depend on how many there are (matrix products treat the edge of
a batch differently), so the video equals that of one process bit for bit where its calls hold the same rows,
and to float tolerance otherwise, unless a search or the cache has to choose between numbers that differ only
in their last bits. All processes have the same bits, and so decide alike.

Before predictions are exchanged, processes say in a few numbers what they are doing. One that fails or
leaves early says so instead, and all others stop with one error; so they do if their inputs are not the
same (another prompt, another seed). One that is killed is noticed by the closed connection or by the
process group's timeout. A stop (Ctrl-C) waits until it can be said in the same way: all stop where the first
of them was asked to, so that none waits for one that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from miga_bench.backbones.base import Backbone, Denoiser
from miga_bench.errors import LostError, TeamError
from miga_bench.harness.stop import StopRequested, StopSignals

# What a process says it is doing, the first of the numbers it sends.
_LEAVES, _FAILS, _BEGINS, _CALLS = range(4)


class WindowParallel:
    """This process, as one of those that make a video together.

    On a GPU the processes' own devices hold a backbone each. Only one process needs to decode and
    write; the others take the latents and drop them.

    Args:
        group: The processes; None is all there are. Its timeout is how long one waits for another.
        words: The same processes in a Gloo group, for what they say to each other; None is ``group``.
            NCCL notices late that a process was killed.
        stop: Signals that ask to stop, held back by the caller while the context is entered; they
            are obeyed by all processes together. None leaves them alone.

    Attributes:
        rank: Number of this process in the group.
        size: Processes in the group.
        rows: Rows this process has denoised.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        words: dist.ProcessGroup | None = None,
        stop: StopSignals | None = None,
    ) -> None:
        self.group, self.words, self.stop = group, words or group, stop
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.rows = 0
        self._carrier = self._mouth = torch.device("cpu")
        self._together = False

    @contextmanager
    def sharing(self, backbone: Backbone) -> Iterator[None]:
        """Let samplers on ``backbone`` share their denoiser calls while the context is entered.

        All processes enter it, sample the same video in it, and leave it. The backbone is left as
        it was found.

        Raises:
            LostError: Another process is gone.
            TeamError: In it: another process failed, stopped early, was lost, or makes another video.
            StopRequested: In it: a process was asked to stop.
        """
        self._carrier = _carrier(self.group, backbone)
        self._mouth = _carrier(self.words, backbone)
        before, backbone.team = backbone.team, self
        self._together, last = True, _FAILS
        try:
            # NCCL takes its buffers, which torch does not count, with the first exchange: before a share is
            # fitted into the memory that is free
            self._gather(torch.zeros(1, device=self._carrier), self.group)
            yield
            last = _LEAVES
        finally:
            backbone.team = before
            if self._together:
                # Whoever is lost now is no loss to a process that leaves, or that has its own error.
                with suppress(TeamError):
                    self._meet(last)

    def split(self, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser that does this process's rows, and returns the rows of all."""
        return _Share(self, denoiser)

    def capacity(self, windows: int) -> int:
        """Return how many windows a call of all may hold: each as many as fit where memory is tightest."""
        return self.size * min(int(words[1]) for words in self._meet(_BEGINS, windows))

    def exchange(self, own: Tensor, rows: int, inputs: list[Tensor]) -> Tensor:
        """Give this process's rows, get all.

        Args:
            own: ``[n, ...]``, the predictions for ``share(rows)``; empty where there are none.
            rows: Rows of the whole call.
            inputs: What the call was told; must be the same everywhere.

        Returns:
            ``[rows, ...]`` float32 on the device of ``own``.

        Raises:
            TeamError: See ``sharing``.
        """
        most = len(self._places(rows, 0))
        part = torch.zeros(most, *own.shape[1:], device=self._carrier)
        part[: len(own)] = own
        # Last before the predictions: whatever fails here must not keep the others waiting for them.
        self._meet(_CALLS, rows, sum(_digest(part) for part in inputs))
        everybody = self._gather(part, self.group)
        counts = [len(self._places(rows, rank)) for rank in range(self.size)]
        parts = [part[:count] for part, count in zip(everybody, counts, strict=True)]
        return torch.cat(parts).to(own.device)

    def share(self, rows: int) -> slice:
        """Return which of a call's rows are this process's."""
        places = self._places(rows, self.rank)
        return slice(places.start, places.stop)

    def _places(self, rows: int, rank: int) -> range:
        """Return a process's rows: as many as any other's, or one more for the first ones."""
        least, more = divmod(rows, self.size)
        start = rank * least + min(rank, more)
        return range(start, start + least + (rank < more))

    def _meet(self, doing: int, *numbers: int) -> list[list[int]]:
        """Say what this process is doing, and hear of the others.

        Returns:
            For every process what it does and its numbers.

        Raises:
            TeamError: They do not do the same; not raised in a process that is leaving.
            StopRequested: One was asked to stop, while all go on.
        """
        asked = (self.stop and self.stop.waiting) or 0
        words = torch.tensor([*[doing, *numbers, 0, 0][:3], asked], device=self._mouth)
        said: list[list[int]] = torch.stack(self._gather(words, self.words)).tolist()
        heard, asked = [word[:3] for word in said], max(word[3] for word in said)
        self._together = all(word[0] > _FAILS for word in heard)
        if self._together and asked:
            self._together = False  # they part here, and all know it
            if self.stop is not None:
                self.stop.follow(asked)
            raise StopRequested(asked)
        if doing <= _FAILS:
            return heard
        for rank, word in enumerate(heard):
            who = f"process {rank} of the {self.size} that make this video together"
            if word[0] == _FAILS:
                raise TeamError(f"{who} stopped on an error of its own: see what it says")
            if word[0] == _LEAVES:
                raise TeamError(f"{who} left before the others: all must take as many latents")
            if word[0] != heard[0][0] or (doing == _CALLS and word != heard[0]):
                raise TeamError(
                    f"{who} makes another video than process 0: prompts, seed, method and all settings "
                    "must be the same, and so must be the kind of device, for the text encoder, too, which"
                    " moves to the CPU where memory runs out"
                )
        return heard

    def _gather(self, own: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
        """Return everybody's ``own``, by rank; all shapes must be the same."""
        everybody = [torch.empty_like(own) for _ in range(self.size)]
        try:
            dist.all_gather(everybody, own, group)
        except BaseException as error:
            self._together = False  # an exchange that was torn cannot be taken up again
            if isinstance(error, RuntimeError):  # its text is for those who look at the traceback
                raise LostError(
                    f"process {self.rank} of {self.size} lost another one that makes this video with it: "
                    "it was killed or did not answer in time"
                ) from error
            raise
        return everybody


class _Share:
    """A denoiser of which every process of a team does a part; see ``Denoiser``."""

    def __init__(self, team: WindowParallel, denoiser: Denoiser) -> None:
        self.team, self.denoiser = team, denoiser

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor, **more: Any) -> Tensor:
        """Predict for all rows, in float32, by denoising those of this process."""
        rows, own = len(latents), self.team.share(len(latents))
        output = latents[:0]
        if own.stop > own.start:
            output = self.denoiser(latents[own], timesteps[own], text[own], **more)
            self.team.rows += len(output)
        return self.team.exchange(output, rows, [latents, timesteps, text])


def _carrier(group: dist.ProcessGroup | None, backbone: Backbone) -> torch.device:
    """Return where a group takes tensors from: Gloo from main memory, NCCL from the GPU."""
    return torch.device("cpu" if dist.get_backend(group) == "gloo" else backbone.device)


def _digest(values: Tensor) -> int:
    """Return the sum of the numbers' float32 bit patterns: exact, whatever the order of summing."""
    return int(values.float().contiguous().view(torch.int32).sum(dtype=torch.int64))
