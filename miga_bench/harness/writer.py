"""The end of a run's pipe: videos stream into their files while they are made."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import BasePredictionWriter

from miga_bench.errors import disk_is_full, gpu_is_lost, in_print, told
from miga_bench.harness.deal import deal
from miga_bench.harness.items import Item
from miga_bench.harness.lifeline import Lifeline
from miga_bench.harness.locks import HeldError
from miga_bench.harness.making import make, score
from miga_bench.harness.progress import RunProgress
from miga_bench.harness.ranks import Gathering, Together, agree
from miga_bench.harness.runs import Run
from miga_bench.harness.scorers import ItemScorer
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.store import ERROR
from miga_bench.harness.teams import Teamwork, check_settings, check_size
from miga_bench.harness.video import Video, Watcher

MOST_TEXT = 200  # characters of an error


class Making:
    """What ``predict_step`` returns: an item and its video, which nobody has made yet."""

    def __init__(self, item: Item, video: Video) -> None:
        self.item, self.video = item, video


class RunWriter(BasePredictionWriter):
    """Makes a run's items and its records.

    Args:
        name: The run's folder below root. The same name goes on with the same run.
        root: The folder above all runs; runs below it share their items.
        fail_on_error: Whether failed videos make the run a failed one: true, false, or the share of
            videos above which they do. The others are made in any case.
        window_parallel: Processes that make each video together, every one a part of each denoising pass; it
            must divide the number of processes. With 1, each makes its own videos.
        about: What reports say of it: title, question, published (a table of the paper), axis (the setting
            that a curve is drawn over), baseline (the arm that others are compared with).
        quiet: Show no progress.

    Raises:
        UserError: A value cannot be one.

    Attributes:
        run: The run.
        window_parallel: As given.
        gathering: Waits no longer than it should for the other ranks; None waits as torch does.
        lifeline: Ends a rank when rank 0 is gone, and rank 0 when it waits for one that is.
        configuration: Goes into run.yaml for the record.
        status: What is in status.json, on rank 0 and after the run.
        settled: Whether all ranks are through, and the status is written.
    """

    def __init__(
        self,
        name: str,
        root: str = "runs",
        fail_on_error: bool | float = True,
        window_parallel: int = 1,
        about: dict[str, str | None] | None = None,
        quiet: bool = False,
    ) -> None:
        super().__init__("batch")
        self.run = Run(Path(root), name, fail_on_error)
        self.window_parallel = window_parallel
        self.gathering: Gathering | None = None
        self.lifeline: Lifeline | None = None
        self.configuration: Mapping[str, Any] = {}
        self.status: dict[str, Any] | None = None
        self.settled = False
        self._quiet = quiet
        self._items: dict[str, Item] = {}
        self._names: dict[str, str] = {}
        self._costs: list[int] = []
        self._scorers: list[ItemScorer] = []
        self._later: list[tuple[Making, int]] = []  # what another run makes now, and its place
        self._whole: set[str] = set()  # keys of the items that this rank has finished
        self._watcher = Watcher()
        self._progress: RunProgress | None = None
        self._stop = StopSignals()
        self._open = ExitStack()
        self._together: Together | None = None
        self._team = Teamwork()
        self._rank, self._gave_up = 0, False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Become the run's only writer, all ranks together.

        Raises:
            UserError: Somebody else is, or the processes cannot form the teams, or not with these settings.
        """
        check_size(self.window_parallel, trainer.world_size)
        settings = [sampler.settings for sampler in pl_module.samplers.values()]
        check_settings(self.window_parallel, settings)
        self._together, self.lifeline = Together(), Lifeline(trainer)
        self._team = Teamwork(self.window_parallel, self._stop)
        if self.gathering is not None:
            self.gathering.done()
        agree(trainer, self.run.acquire)

    def listen(self) -> None:
        """Take over the signals that stop, until all ranks are through.

        Lightning takes SIGTERM for itself just before it asks for the data, and does nothing about it.
        """
        self._stop.listen()

    def begin(
        self, items: Mapping[str, Item], costs: Sequence[int], scorers: Sequence[ItemScorer] = ()
    ) -> None:
        """Hear what is to be made, on every rank.

        Args:
            items: All of the run's, by name.
            costs: What each item takes that is not there yet; see ``LongVideoModule.open_work``.
            scorers: Of the videos.
        """
        self._scorers = list(scorers)
        self._items = dict(items)
        self._names = {item.key: name for name, item in items.items()}
        self._costs = list(costs)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Work with the team; show progress on rank 0."""
        self._rank = trainer.global_rank
        self._open.enter_context(self._team.working())
        if trainer.is_global_zero:
            mine = deal(self._costs, trainer.world_size // self.window_parallel)[0]
            self._progress = RunProgress([self._costs[number] for number in mine], self._quiet)
            self._watcher = self._open.enter_context(self._progress)

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Make the video; a failure is noted and the next one has its turn."""
        if self._team.leads:
            # the others of a team come to its items in the order that was dealt
            self._take(prediction, batch_idx, wait=self.window_parallel > 1)
        else:
            self._team.follow(prediction.video)

    def _take(self, making: Making, place: int, wait: bool) -> None:
        """Make and score a video, or put it off where another run is at it and we do not wait."""
        if self._progress is not None:
            self._progress.begin(place)
        try:
            self._make(making, wait)
        except HeldError:
            self._later.append((making, place))
            return
        if self._progress is not None:
            self._progress.end()

    def _make(self, prediction: Making, wait: bool) -> None:
        item = prediction.item
        name = self._names[item.key]
        try:
            with self._team.turn():
                if self._gave_up:
                    return
                store, video = self.run.store, prediction.video
                manifest = make(store, item, video, self._watcher, self._stop, self._team, wait)
        except Exception as error:
            if not self._gives_up(error):
                if not isinstance(error, OSError):
                    raise
                self._watcher.noticed(f"{name} failed: {in_print(str(error))}")
            return
        if manifest["status"] == "done":
            self.run.link(name, item)
            if self._score(name):
                self._whole.add(item.key)
        else:
            where = store.folder(item.key) / ERROR
            self._watcher.noticed(
                f"{name} failed: {in_print(str(manifest['error']))} ({where} has all of it)"
            )

    def _gives_up(self, error: Exception) -> bool:
        """Pass over all further items if an error says that none would fare better; tell so."""
        if disk_is_full(error):
            assert isinstance(error, OSError)
            self._gave_up = True
            self._watcher.noticed(
                f"{self.run.store.root} takes no more ({error.strerror}): nothing further is begun; make room"
                " there, then the same command makes what is missing"
            )
        elif gpu_is_lost(error):
            self._gave_up = True
            # torch's advice to its developers is left out; who of a team met the error stands behind it
            reason = re.sub(r" CUDA kernel errors.*?(?= \(on process|$)", "", in_print(str(error)))
            whose = "a GPU" if " (on process" in reason else f"the GPU of process {self._rank}"
            self._watcher.noticed(
                f"{whose} is lost ({reason[:MOST_TEXT]}): nothing further is begun on it; the same command"
                " makes what is missing"
            )
        return self._gave_up

    def _score(self, name: str) -> bool:
        """Score the video; what goes wrong is said, and tried again by the same command."""
        if self._scorers and self._progress is not None:
            self._progress.scoring()
        try:
            # the run's own item, for what travels with the video says nothing of scoring
            score(self.run.store, self._items[name], self._scorers, self._stop)
        except Exception as error:
            if not self._gives_up(error) and not getattr(error, "reported", False):
                self._watcher.noticed(f"{name} is not scored: {in_print(told(error))}")
            return False
        return True

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Come to what was put off; part with those that made videos together with this one; settle."""
        for making, place in self._later:
            self._take(making, place, wait=True)
        self._team.end()
        self._settle(trainer)  # before Lightning cleans up, which fails where a GPU is lost

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Settle where there was nothing to make; let other writers in."""
        if not self.settled:
            self._stop.listen()  # Lightning gave the signals back to those that had them before it
            self._settle(trainer)
        self.run.release()

    def _settle(self, trainer: Any) -> None:
        """Wait for all ranks, then write the run's status."""
        others: set[str] = set()
        self._open.close()
        with self._stop.shielded():
            pass  # a stop that the team's last meeting was too early for is obeyed here
        if self._together is not None:
            progress = self._progress
            self._together.wait(lambda: None if progress is None else progress.waiting())
            others = self._together.gather(self._whole) - self._whole
        if trainer.is_global_zero:
            self.run.wait_for([self._items[self._names[key]] for key in others], self._scorers)
        self._cut_lifeline()  # nobody waits for another any more
        if trainer.is_global_zero:
            self.status = self.run.close(self._items, scorers=self._scorers)
        self.settled = True
        self._stop.rest()  # there is nothing left to stop

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write how far it came, if the user stopped it."""
        if isinstance(exception, KeyboardInterrupt):
            self._team.dismiss(self.stopped_by)
        else:
            self._stop.rest()
        self._open.close()
        # of an error that was told to all, nobody has to be ended for rank 0
        if not trainer.is_global_zero or getattr(exception, "reported", False):
            self._cut_lifeline()
        elif self.lifeline is not None:
            self.lifeline.rest()
        stopped = isinstance(exception, KeyboardInterrupt) and not self.settled
        if trainer.is_global_zero and self._items and stopped:
            self.status = self.run.close(self._items, self.stopped_by, self._scorers)
        self.run.release()

    def rest(self) -> None:
        """Give the signals back, at the run's end: a stop that came twice means nothing to Lightning."""
        self._stop.rest()

    @property
    def stopped_by(self) -> int:
        """The signal that asked to stop; Ctrl-C's if that came before signals were listened to."""
        return self._stop.signal or signal.SIGINT

    def _cut_lifeline(self) -> None:
        if self.lifeline is not None:
            self.lifeline.close()


def team_size(trainer: Any) -> int:
    """Return how many processes make each video together."""
    writers = (c for c in trainer.callbacks if isinstance(c, RunWriter))
    return next((writer.window_parallel for writer in writers), 1)
