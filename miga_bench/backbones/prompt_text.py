"""What is done with a prompt whatever runs the text encoder."""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress

import ftfy
from torch import Tensor

from miga_bench.errors import UserError


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice, as released) and join white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


class PromptText(ABC):
    """Prompts to embeddings, by whatever runs the text encoder.

    Attributes:
        length: Rows of every embedding: how many tokens the model reads.
    """

    length: int

    @property
    @abstractmethod
    def unknown(self) -> int | None:
        """The token of words that have no other; None if every word has."""

    @abstractmethod
    def spell(self, text: str) -> list[int]:
        """Return a cleaned text's tokens with all marks, however many they are."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings ``[len(prompts), length, D]``, each prompt on its own."""

    @abstractmethod
    def _embed(self, prompt: str, tokens: list[int]) -> Tensor:
        """Return a cleaned prompt's embedding from wherever it is, and keep it there."""

    @property
    @abstractmethod
    def _comes_and_goes(self) -> bool:
        """Whether the encoder is loaded for prompts that are new, and leaves memory behind them."""

    @abstractmethod
    def _leave(self) -> None:
        """Drop an encoder that is not to stay."""

    def tokens(self, prompt: str) -> list[int]:
        """Return a cleaned prompt's tokens.

        Raises:
            UserError: There are more than the model reads.
        """
        tokens = self.spell(prompt)
        if len(tokens) > self.length:
            raise UserError(
                f"the prompt has {len(tokens)} tokens but the model reads {self.length}: shorten"
                f" {prompt[:40]!r}..."
            )
        return tokens

    def beginning(self, prompt: str) -> str:
        """Return the prompt, or if it is too long as many of its first words as the model reads.

        Raises:
            UserError: Not even one is.
        """
        words = clean_prompt(prompt).split(" ")
        fits = range(len(words) + 1)
        # the first count of words that is too many, one past the last if none is
        end = bisect_left(
            fits, True, key=lambda n: len(self.spell(" ".join(words[:n]))) > self.length
        )
        if end > len(words):
            return prompt
        if end < 2:
            self.tokens(words[0])
        return " ".join(words[: end - 1])

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Return words that become the unknown token, in order, each once."""
        if self.unknown is None:
            return []
        words = (word.strip(".,;:!?") for p in prompts for word in clean_prompt(p).split())
        return [word for word in dict.fromkeys(words) if self.unknown in self.spell(word)]

    def encode_ahead(self, prompts: Sequence[str]) -> None:
        """Put embeddings that are not in the cache there, with the encoder loaded once for all."""
        if not self._comes_and_goes:
            return
        try:
            for prompt in dict.fromkeys(map(clean_prompt, prompts)):
                with suppress(UserError):  # one that is too long is told where it is wanted
                    self._embed(prompt, self.tokens(prompt))
        finally:
            self._leave()
