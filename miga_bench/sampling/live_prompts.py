"""Prompts that come while the video is made."""

from __future__ import annotations

import torch
from torch import Tensor

from miga_bench.sampling.base import PromptSchedule


class LivePrompts(PromptSchedule):
    """A schedule that takes further prompts while a sampler reads it.

    A new prompt begins behind every latent frame for which a prompt was asked so far, so the video is the one
    that is made where all prompts are known from the start.

    Args:
        first: What is known from the start.
    """

    def __init__(self, first: PromptSchedule) -> None:
        super().__init__(first.text, first.negative, first.starts)
        self._asked = -1

    @property
    def changes(self) -> bool:
        """Whether the prompt changes along the video: it may."""
        return True

    def segment(self, frame: int) -> int:
        """Return which prompt applies at a latent frame, which is settled by that."""
        self._asked = max(self._asked, frame)
        return super().segment(frame)

    def then(self, text: Tensor) -> int:
        """Change to another prompt as early as nothing that is begun changes.

        Args:
            text: ``[1, S, D]`` embedding.

        Returns:
            The latent frame at which it begins.
        """
        start = max(self._asked, self.starts[-1]) + 1
        # the fields are frozen for everybody else
        object.__setattr__(self, "text", torch.cat([self.text, text.to(self.text)]))
        object.__setattr__(self, "starts", (*self.starts, start))
        return start
