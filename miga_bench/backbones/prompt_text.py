"""What is done with a prompt whatever runs the text encoder."""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import ftfy
import torch
from torch import Tensor
from torch.nn import functional

from miga_bench.backbones.embedding_cache import EmbeddingCache
from miga_bench.errors import UserError


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice, as released) and join white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


class PromptText(ABC):
    """Prompts to embeddings, by whatever runs the text encoder.

    Attributes:
        length: Rows of every embedding: how many tokens the model reads.
        keep: Whether the encoder stays in memory after use; may be set at any time.
    """

    length: int
    keep: bool
    _cache: EmbeddingCache | None

    @property
    @abstractmethod
    def unknown(self) -> int | None:
        """The token of words that have no other; None if every word has."""

    @abstractmethod
    def spell(self, text: str) -> list[int]:
        """Return a cleaned text's tokens with all marks, however many they are."""

    @abstractmethod
    def unload(self) -> None:
        """Drop the encoder; a later prompt loads it again."""

    @abstractmethod
    def _embed(self, prompt: str, tokens: list[int]) -> Tensor:
        """Return a cleaned prompt's embedding ``[up to length, D]`` from wherever it is, and keep it there."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings ``[len(prompts), length, D]`` on the CPU, zero past each prompt's end.

        Each prompt goes through the encoder on its own, so that its embedding does not depend on
        its neighbors.
        """
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        spoken = {prompt: self.tokens(prompt) for prompt in cleaned}
        with self._leaving():
            rows = {prompt: self._embed(prompt, tokens) for prompt, tokens in spoken.items()}
        ends = {prompt: (0, 0, 0, self.length - len(row)) for prompt, row in rows.items()}
        return torch.stack([functional.pad(rows[prompt], ends[prompt]) for prompt in cleaned])

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Drop an encoder that is not to stay, also after an error."""
        try:
            yield
        finally:
            if not self.keep:
                self.unload()

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

        Where not even one is read, as of a text without spaces, it is as many of its first letters.

        Raises:
            UserError: Not even one letter is read.
        """
        cleaned = clean_prompt(prompt)
        for pieces, joint in ((cleaned.split(" "), " "), (list(cleaned), "")):
            count = self._read_of(pieces, joint)
            if count == len(pieces):
                return prompt
            if count > 0:
                return joint.join(pieces[:count])
        self.tokens(cleaned[:1])
        return ""

    def _read_of(self, pieces: Sequence[str], joint: str) -> int:
        """Return how many of the first pieces the model reads; -1 if not even none."""
        fits = range(len(pieces) + 1)
        return bisect_left(fits, True, key=lambda n: self._too_long(joint.join(pieces[:n]))) - 1

    def _too_long(self, text: str) -> bool:
        return len(self.spell(text)) > self.length

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Return words that become the unknown token, in order, each once."""
        if self.unknown is None:
            return []
        words = (word.strip(".,;:!?") for p in prompts for word in clean_prompt(p).split())
        return [word for word in dict.fromkeys(words) if self.unknown in self.spell(word)]

    def encode_ahead(self, prompts: Sequence[str]) -> None:
        """Put embeddings that are not in the cache there, with the encoder loaded once for all."""
        if self._cache is None or self.keep:
            return
        with self._leaving():
            for prompt in dict.fromkeys(map(clean_prompt, prompts)):
                with suppress(UserError):  # one that is too long is told where it is wanted
                    self._embed(prompt, self.tokens(prompt))
