"""What the parts share: rows of the table, a video to make, a meter, processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from miga_bench.backbones.base import Backbone, Denoiser
from miga_bench.errors import FailedError
from miga_bench.harness.bench.rounds import Clock
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve
from miga_bench.sampling.base import PassCallback

PROMPT = "a red circle moves right on a blue field"
MODEL = "tiny-wan"
# MIGA with every part but the search, whose cost depends on what it sees; few steps, for seconds each.
SMALL = {"steps": 16, "stage2_steps": 3, "renoise": 3, "reflection": "off"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        measurement: What was measured.
        value: Its median.
        spread: Minimum and maximum of the rounds.
        target: What it should be.
    """

    measurement: str
    value: str
    spread: str = ""
    target: str = ""


@dataclass
class Part:
    """What a part found.

    Attributes:
        document: For the JSON document.
        rows: For the table.
    """

    document: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


@dataclass
class TimeMeter:
    """Counts the seconds that a sampler spends in the denoiser; see ``Meter``.

    Attributes:
        clock: Gives them.
        seconds: So far.
        largest: Most rows of a call.
    """

    clock: Clock = time.process_time
    seconds: float = 0.0
    largest: int = 0

    def metered(self, network: Denoiser, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser that does what ``denoiser`` does and is timed."""
        call: Any = denoiser

        def measured(latents: Tensor, timesteps: Tensor, text: Tensor, **more: Any) -> Tensor:
            self.largest = max(self.largest, len(latents))
            start = self.clock()
            out: Tensor = call(latents, timesteps, text, **more)
            self.seconds += self.clock() - start
            return out

        return measured


def usable_cores() -> int:
    """Return how many cores this process may use; where the system does not say, all there are."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def prompts_of(backbone: Backbone) -> PromptSchedule:
    """Return the prompt that everything is measured with."""
    return PromptSchedule(backbone.encode([PROMPT]), backbone.encode([""]))


def maker(
    backbone: Backbone,
    method: str,
    overrides: dict[str, Any],
    length: int,
    prompts: PromptSchedule | None = None,
    callback: PassCallback | None = None,
) -> Callable[[], Tensor]:
    """Return what makes the same video again and again, ``[length, C, H, W]`` latents.

    Args:
        backbone: The model.
        method: A name in ``METHODS``.
        overrides: Settings that differ from the backbone's default preset.
        length: Latents.
        prompts: None is ``prompts_of(backbone)``, which an export without a text encoder lacks.
        callback: Told of every pass.
    """
    text = prompts_of(backbone) if prompts is None else prompts
    sampler = METHODS[method](resolve(method, backbone, overrides=overrides))
    noise = CounterNoise(0, backbone.latent_shape, backbone.device)
    return lambda: sampler.sample(backbone, text, noise, length, callback)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, as a share of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def in_a_process(*arguments: str) -> dict[str, Any]:
    """Run Python with these arguments, and return the JSON document on its last line.

    Raises:
        FailedError: It failed.
    """
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        # of several processes the launcher has the last word, and the first error is what went wrong
        last = next((ln for ln in said if re.search(r"^(\[\w+\]:)?\s*[\w.]*Error: ", ln)), said[-1])
        raise FailedError(f"python {' '.join(arguments)} ended with {done.returncode}: {last}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document
