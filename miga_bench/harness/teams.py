"""Ranks in teams of equal size: a team makes each of its videos together (``run.window_parallel``).

The first rank of a team leads it: it alone decides what is made, decodes, writes and scores; the others
denoise their share and drop what comes out. The team meets before every item, where the leader says whether
it is made or passed over, after it, where each says what went wrong, and once more when there is no further
item. Between two meetings the leader may take its time: it scores a video, or waits for another process's
lock.

A stop is obeyed where the team meets, and while a video is made before every denoiser call, by all at once.
A leader that is asked to stop elsewhere does so at once, and tells the others, who wait for it. An error of
one is told to all, fails the item, and the team goes on; a rank that is killed ends its whole team at once.
One whose machine vanishes does after ``SILENCE`` within a video, elsewhere when rank 0 waits for it; see
``Lifeline``.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import distributed

from miga_bench.backbones.base import Backbone
from miga_bench.errors import LostError, TeamError, UserError
from miga_bench.harness.ranks import PATIENCE, gloo_group, waiting_for
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.harness.video import Video, Watcher
from miga_bench.harness.window_parallel import WindowParallel
from miga_bench.sampling.base import CommonSettings
from miga_bench.sampling.rules import refuse_shared_cache

# A team's ranks are never further apart within a video than a decoded latent, or a compilation.
SILENCE = timedelta(minutes=30)

# What the leader says of the next item.
_PASS_OVER, _MAKE, _END, _STOP = range(4)


def check_size(size: int, world: int) -> None:
    """Refuse teams that the processes cannot form.

    Raises:
        UserError: Their size does not divide the number of processes.
    """
    if size < 1 or world % size:
        good = [str(k) for k in range(1, world + 1) if world % k == 0]
        raise UserError(
            f"run.window_parallel is {size}: it must divide the number of processes, which is {world}"
            f" (trainer.devices times trainer.num_nodes); it may be {', '.join(good)}"
        )


def check_settings(size: int, settings: Iterable[CommonSettings]) -> None:
    """Refuse settings that a team of this size cannot work by.

    Raises:
        UserError: They ask for a cache.
    """
    for one in settings:
        refuse_shared_cache(one.cache, size > 1)


@dataclass(frozen=True)
class Trouble:
    """What went wrong on one rank.

    Attributes:
        text: The error's message.
        trace: Its traceback.
        heard: Whether it only repeats another rank's error.
    """

    text: str
    trace: str
    heard: bool


class Teamwork:
    """What this rank does with those that make videos with it; by default it is on its own.

    Args:
        size: Ranks in a team; all ranks of the run form teams at once.
        stop: Signals that ask to stop.

    Attributes:
        leads: Whether this rank decides, decodes and writes.
        size: Ranks in this team.
    """

    def __init__(self, size: int = 1, stop: StopSignals | None = None) -> None:
        self.leads, self.size = True, size
        self._stop = stop or StopSignals()
        self._waits = False  # whether the others wait for the leader's word, or will
        self._parallel: WindowParallel | None = None
        if size == 1:
            return
        rank, world = distributed.get_rank(), distributed.get_world_size()
        self.leads = rank % size == 0
        for first in range(0, world, size):  # every rank has to take part in forming every team
            ranks = list(range(first, first + size))
            meeting = gloo_group(PATIENCE, ranks)
            words = gloo_group(SILENCE, ranks)
            gloo = distributed.get_backend() == "gloo"
            rows = words if gloo else distributed.new_group(ranks, timeout=SILENCE)
            if rank in ranks:
                self._meeting, self._ranks = meeting, ranks
                self._parallel = WindowParallel(rows, words, self._stop)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work in the block; a rank that does not lead holds stops back until its team meets."""
        self._waits = self.size > 1
        if self.leads:
            yield
        else:
            with self._stop.held():
                yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Lead through an item: the others pass it over if it was not made in the block."""
        self._told = False
        try:
            yield
        except Exception:
            self._pass_over()
            raise
        self._pass_over()

    def _pass_over(self) -> None:
        if self._waits and not self._told:
            self._meet(_PASS_OVER)

    @contextmanager
    def making(self, backbone: Backbone) -> Iterator[None]:
        """Lead the making of a video: all denoise it together in the block.

        Raises:
            TeamError: Another rank failed; its traceback is in the notes.
            LostError: Another rank is gone.
            StopRequested: A rank was asked to stop.
        """
        if self._parallel is None:
            yield
            return
        with self._stop.held():
            self._told = True
            self._meet(_MAKE)
            with self._sharing(backbone, self._parallel):
                yield

    def follow(self, video: Video) -> None:
        """Do this rank's share of an item, if the leader makes it; an error is the leader's to record.

        Raises:
            LostError: Another rank is gone.
            StopRequested: A rank was asked to stop.
        """
        assert self._parallel is not None, "a rank on its own leads"
        if self._meet(_MAKE) == _MAKE:
            try:
                with self._sharing(video.backbone, self._parallel):
                    video.plan(Watcher())
                    video.denoise()
            except Exception as error:
                if isinstance(error, LostError):
                    raise

    @contextmanager
    def _sharing(self, backbone: Backbone, parallel: WindowParallel) -> Iterator[None]:
        """Denoise together in the block, then hear of all what went wrong."""
        own: Exception | None = None
        try:
            with parallel.sharing(backbone):
                yield
        except (LostError, StopRequested):
            self._waits = False
            raise
        except Exception as error:
            own = error
        trouble = None
        if own is not None:
            trace = "".join(traceback.format_exception(own))
            trouble = Trouble(str(own), trace, isinstance(own, TeamError))
        everybody: list[Trouble | None] = self._tell(trouble)
        if own is not None and not isinstance(own, TeamError):
            raise own
        for rank, other in enumerate(everybody):
            if other is not None and not other.heard:
                told = TeamError(
                    f"{other.text} (on process {rank} of the {self.size} that made it together)"
                )
                told.add_note(other.trace)
                raise told
        if own is not None:
            raise own

    def end(self) -> None:
        """Meet for the last time: there is no further item.

        Raises:
            LostError: Another rank is gone.
            StopRequested: A rank was asked to stop.
        """
        if self._waits:
            self._meet(_END)
            self._waits = False

    def dismiss(self, number: int) -> None:
        """Tell those that wait for the leader that it was asked to stop; does nothing elsewhere."""
        if self._waits and self.leads:
            self._waits = False
            with suppress(LostError), self._stop.held():
                self._tell((_STOP, number))

    def _meet(self, word: int) -> int:
        """Return what the leader says of the next item.

        Args:
            word: What to say, where this rank leads.

        Raises:
            LostError: Another rank is gone.
            StopRequested: A rank was asked to stop.
        """
        with self._stop.held():
            everybody: list[tuple[int, int]] = self._tell((word, self._stop.waiting or 0))
        asked = max(number for _, number in everybody)
        if asked:
            self._waits = False
            self._stop.follow(asked)
        return everybody[0][0]

    def _tell(self, own: Any) -> list[Any]:
        """Return what every rank of the team tells, by its place in it."""
        everybody: list[Any] = [None] * self.size
        try:
            with waiting_for(self._ranks):
                distributed.all_gather_object(everybody, own, self._meeting)
        except RuntimeError as error:
            self._waits = False
            raise LostError(
                "another process that makes videos together with this one is gone: the same command"
                " makes what is missing"
            ) from error
        return everybody
