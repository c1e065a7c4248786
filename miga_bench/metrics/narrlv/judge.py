"""Who answers NarrLV's questions: what a judge is, and what both of ours have in common.

Facts of the original's ``answer_gen.py`` (https://github.com/AMAP-ML/NarrLV): the four opening categories
are asked about the first frame, all others about ten frames spread over the video; every question gets
the same suffix and is asked five times, sampling. The original has no seeds; here every single answer has
its own, so that a run can be repeated and resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from miga_bench.errors import UserError
from miga_bench.metrics.narrlv.suite import FIRST_FRAME

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = " Only answer with yes or no, no additional explanation needed."
SYSTEM = "You are a helpful assistant."
FRAMES = 10


class Judge(Protocol):
    """Answers yes/no questions about frames.

    Attributes:
        concurrency: How many questions may be put to it at once, from as many threads.
    """

    concurrency: int

    def frames(self, total: int, category: str) -> Sequence[int]:
        """Return which frames of a video of ``total`` it wants to see for a category of questions."""
        ...

    def __call__(self, frames: Tensor, question: str, seed: int) -> str:
        """Answer a question.

        Args:
            frames: uint8 ``[N, 3, H, W]``, those it asked for.
            question: As the suite has it.
            seed: 0 to 2**31 - 1; the same seed, frames and question get the same answer as far as
                the judge can promise.

        Returns:
            The answer as it came.

        Raises:
            JudgeDownError: It cannot be reached.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """Return everything that shapes its answers, as plain values."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; the defaults are the original's.

    Attributes:
        temperature: 0 takes the likeliest word each time.
        top_p: Share of probability that words are drawn from, above 0 to 1.
        repetition_penalty: 1 is none.
        max_new_tokens: Longest answer.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    repetition_penalty: float = 1.05
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        for name, (right, rule) in rules.items():
            if not right:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {rule}")

    def as_dict(self) -> dict[str, float | int]:
        """Plain values."""
        return asdict(self)


def original_frames(total: int, category: str) -> list[int]:
    """Return the frames that the original shows: the first, or ten from the first to the last."""
    if category in FIRST_FRAME:
        return [0]
    return [int(i) for i in np.linspace(0, total - 1, FRAMES, dtype=int)]


def seed_of(seed: int, key: str, category: str, question: int, vote: int) -> int:
    """Return the seed of one answer, 0 to 2**31 - 1: a hash of the run's seed and what is asked."""
    name = f"{seed}/{key}/{category}/{question}/{vote}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % 2**31


def first_line(error: BaseException | str) -> str:
    """Return a message as one line of at most 200 characters."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:200]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return ``name: 'before' is now 'now'`` for everything in which two nested records differ."""
    lines: list[str] = []
    for name in sorted({*before, *now}):
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            lines += differences(was, is_, f"{prefix}{name}.")
        elif was != is_:
            lines.append(f"{prefix}{name}: {was!r} is now {is_!r}")
    return lines
