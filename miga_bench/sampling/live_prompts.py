"""Prompts that come while the video is made."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from miga_bench.sampling.base import PromptSchedule


class LivePrompts(PromptSchedule):
    """A schedule that takes further prompts while a sampler reads it.

    A new prompt begins behind every latent frame for which a prompt was asked so far, so the video is the one
    that is made where all prompts are known from the start. ``text`` and ``starts`` are those of the start.

    Args:
        first: What is known from the start.
    """

    def __init__(self, first: PromptSchedule) -> None:
        super().__init__(first.text, first.negative, first.starts)
        self._asked = -1
        # by number of the prompt: the latent frame at which it begins, and its text
        self._live = dict(enumerate(zip(first.starts, first.text.split(1), strict=True)))
        self._changing = threading.Lock()  # whoever changes the prompt may not be who reads it

    @property
    def changes(self) -> bool:
        """Whether the prompt changes along the video: it may."""
        return True

    @property
    def kept(self) -> int:
        """How many texts are held now."""
        return len(self._live)

    def segment(self, frame: int) -> int:
        """Return which prompt applies at a latent frame, which is settled by that.

        A frame that is handed out may be told a prompt before its own.
        """
        with self._changing:
            self._asked = max(self._asked, frame)
            return self._at(frame)

    def texts(self, segments: Sequence[int]) -> Tensor:
        """Return the embeddings of prompts by number, ``[B, S, D]``."""
        with self._changing:
            return torch.cat([self._live[number][1] for number in segments])

    def then(self, text: Tensor) -> int:
        """Change to another prompt as early as nothing that is begun changes.

        Args:
            text: ``[1, S, D]`` embedding.

        Returns:
            The latent frame at which it begins.
        """
        text = text.to(self.text)
        with self._changing:
            last = max(self._live)
            start = max(self._asked, self._live[last][0]) + 1
            self._live[last + 1] = start, text
        return start

    def forget_before(self, frame: int) -> None:
        """Drop the prompts of latent frames that are handed out, but for the first, which openings show."""
        with self._changing:
            own = self._at(frame)
            self._live = {k: live for k, live in self._live.items() if k == 0 or k >= own}

    def _at(self, frame: int) -> int:
        return max(k for k, (start, _) in self._live.items() if start <= max(frame, 0))
