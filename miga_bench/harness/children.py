"""The processes that Lightning starts beside this one, where neither torchrun nor SLURM has started them.

Lightning itself kills all of them and this one, without a word, as soon as one has ended badly: what the
others have begun is lost, and a run that is stopped dies before it has said so. Here they go on or end as
under any other launcher (``lifeline``, ``ranks``), and a line says what became of the one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from miga_bench.harness.lifeline import GRACE
from miga_bench.harness.ranks import Gathering

POLL = 1.0
SETTLING = 5.0  # seconds for this process to know that all have met, once one of them does
ASKED = (signal.SIGINT, signal.SIGTERM)  # who sends them wants an end, and needs no line


class Children(_SubprocessScriptLauncher):
    """Starts processes as Lightning does, and lets them be.

    Attributes:
        gathering: Of all processes of the run, None where nobody waits for it.
    """

    gathering: Gathering | None = None
    _until: float | None = None  # when the children must have ended, once they are to

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the other processes of this machine unless they are there, then call the function."""
        self.cluster_environment.validate_settings(self.num_processes, self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True, name="children").start()
        _set_num_threads_if_needed(self.num_processes)
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        """Have the children stop, too: Lightning was asked to, and would kill them here."""
        self._until = time.monotonic() + GRACE
        for process in self.procs:
            process.terminate()  # one that was asked as well goes on stopping

    def end(self) -> None:
        """Wait for children that are to stop; kill those that do not."""
        if self._until is None:
            return
        try:
            with suppress(subprocess.TimeoutExpired):
                for process in self.procs:
                    process.wait(max(0.0, self._until - time.monotonic()))
        finally:
            self._kill_all()

    def _kill_all(self) -> None:
        for process in self.procs:
            process.kill()  # does nothing to one that has ended

    def _watch(self) -> None:
        first = self.cluster_environment.node_rank() * self.num_processes
        left = {first + place: process for place, process in enumerate(self.procs, 1)}
        while left and self._until is None:
            time.sleep(POLL)
            for number, process in list(left.items()):
                code = process.poll()
                if code is None:
                    continue
                del left[number]
                if self.gathering is not None and not self.gathering.met(SETTLING):
                    self._give_up(number, code)
                elif code < 0 and -code not in ASKED and self._until is None:
                    _say(
                        f"{_fate(number, code)}: what it was to make is missing, and the same command makes it"
                    )

    def _give_up(self, number: int, code: int) -> None:
        """End this process, which waits in native code for one that will not come; nobody holds anything."""
        self._kill_all()
        asked = -code if code < 0 else code - 128
        if asked in ASKED:
            _say("stopped: the same command goes on")
            os._exit(128 + asked)
        _say(f"{_fate(number, code)}: nothing was made yet, and the same command begins again")
        os._exit(1)


def _fate(number: int, code: int) -> str:
    """Return what became of a process."""
    if code >= 0:
        return f"process {number} ended with exit code {code} before the others came (see what it says)"
    why = ", often for lack of memory" if -code == signal.SIGKILL else ""
    return f"process {number} was killed (signal {-code}){why}"


def _say(text: str) -> None:
    print(f"miga-bench: {text}", file=sys.stderr, flush=True)


def take_over(trainer: Any) -> None:
    """Have ``Children`` start the processes of a trainer that would start some itself."""
    theirs = trainer.strategy.launcher
    if type(theirs) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = Children(
            theirs.cluster_environment, theirs.num_processes, theirs.num_nodes
        )
