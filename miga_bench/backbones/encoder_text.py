"""Text encoders of torch, whatever the family: loaded when needed, their embeddings kept on disk."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer

from miga_bench.backbones.embedding_cache import EmbeddingCache
from miga_bench.backbones.memory import give_back, tell_crowded
from miga_bench.backbones.prompt_text import PromptText, clean_prompt
from miga_bench.errors import UserError, is_out_of_memory


def _as_released(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    plain = Tokenizer.from_file(str(path))
    plain.no_truncation()
    plain.no_padding()
    return plain


class EncoderText(PromptText):
    """Prompts to embeddings; the encoder is loaded when the first prompt is not in the cache.

    Attributes:
        longest: The family's text length.
        length: Rows of every embedding: the family's text length, or what a shorter tokenizer gives.
        tokenizer: As transformers reads it, which knows the text length and the marks.
        plain: What spells, ``tokenizer.json`` as released; None where there is none, and transformers'
            tokenizer spells. That one is built anew for some classes, which changes rare characters' tokens.

    Args:
        tokenizer: Folder of the tokenizer.
        load_encoder: Loads the encoder where it is to run.
        dtype: The encoder's type.
        identity: Names encoder and tokenizer in the cache; asked only if there is a cache.
        cache: Where embeddings are kept, None for nowhere.
        keep: Whether the encoder stays in memory after use.
    """

    longest: ClassVar[int]

    def __init__(
        self,
        tokenizer: Path,
        load_encoder: Callable[[], Any],
        dtype: torch.dtype,
        identity: Callable[[], str],
        cache: EmbeddingCache | None = None,
        keep: bool = True,
    ) -> None:
        if not tokenizer.is_dir():
            raise UserError(f"{tokenizer} is missing: the tokenizer belongs there, fetch it again")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(tokenizer), local_files_only=True
            )
            self.plain = _as_released(tokenizer)
        except Exception as error:  # the plain library raises no kind of its own
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{tokenizer} holds no tokenizer that can be read ({reason}): fetch it again"
            ) from None
        # What is put around every text. Files whose own rule leaves a mark out get it all the same.
        self._marks: list[int] = self.tokenizer("").input_ids
        self._marks_itself = self.plain is None or self.plain.encode("").ids == self._marks
        limit = int(self.tokenizer.model_max_length)
        self.length = limit if 0 < limit <= self.longest else self.longest
        self.dtype = dtype
        self._load_encoder = load_encoder
        self._identity = identity
        self._cache = cache
        self.keep = keep
        self._encoder: Any = None

    @property
    def loaded(self) -> bool:
        """Whether the encoder is in memory."""
        return self._encoder is not None

    def unload(self) -> None:
        """Drop the encoder; a later prompt loads it again."""
        if self._encoder is None:
            return
        self._encoder = None
        give_back()

    def spell(self, text: str) -> list[int]:
        """Return a cleaned text's tokens with all marks, however many they are."""
        tokens: list[int]
        if self.plain is None:
            # transformers would warn of a long one
            tokens = self.tokenizer(text, add_special_tokens=True, verbose=False).input_ids
        else:
            tokens = self.plain.encode(text, add_special_tokens=self._marks_itself).ids
            if not self._marks_itself:
                tokens = [*self._marks[:-1], *tokens, *self._marks[-1:]]
        return tokens

    def with_marks(self) -> Tokenizer:
        """Return a copy of ``plain`` that sets the marks itself, which a released file may leave to others."""
        assert self.plain is not None
        copy = Tokenizer.from_str(self.plain.to_str())
        if not self._marks_itself:
            names = self.tokenizer.convert_ids_to_tokens(self._marks)
            copy.post_processor = TemplateProcessing(
                single=" ".join([*names[:-1], "$A", *names[-1:]]),
                special_tokens=list(zip(names, self._marks, strict=True)),
            )
        return copy

    def needs_encoder(self, prompts: Sequence[str]) -> bool:
        """Tell whether the encoder has to run for any of these prompts.

        Raises:
            UserError: A prompt has more tokens than the model reads.
        """
        spoken = [self.tokens(clean_prompt(prompt)) for prompt in prompts]
        cache = self._cache
        return cache is None or any(
            cache.load(cache.path(self._identity(), tokens, self.length, self.dtype)) is None
            for tokens in spoken
        )

    @property
    def unknown(self) -> int | None:
        """The token of words that have no other; None if every word has."""
        return self._unknown

    @cached_property
    def _unknown(self) -> int | None:
        token: int | None
        if self.plain is None:
            token = self.tokenizer.unk_token_id
            return token
        model = json.loads(self.plain.to_str())["model"]
        pieces = (f"<0x{byte:02X}>" for byte in range(256))
        if model.get("byte_fallback") and all(
            self.plain.token_to_id(p) is not None for p in pieces
        ):
            return None
        token = model.get("unk_id")  # of unigrams; others name the token
        if token is None and model.get("unk_token") is not None:
            token = self.plain.token_to_id(model["unk_token"])
        return token

    def _embed(self, prompt: str, tokens: list[int]) -> Tensor:
        """Return ``[tokens, D]`` from disk or from the encoder."""
        path = None
        if self._cache is not None:
            path = self._cache.path(self._identity(), tokens, self.length, self.dtype)
            known = self._cache.load(path)
            if known is not None:
                return known
        embedding = self._run(tokens)
        if self._cache is not None and path is not None:
            self._cache.save(path, embedding)
        return embedding

    def _run(self, tokens: list[int]) -> Tensor:
        """Return the encoder's rows; an encoder for which memory runs out goes on in main memory."""
        if self._encoder is None:
            self._encoder = self._load_encoder()
        encoder = self._encoder
        try:
            return self._rows(encoder, tokens)
        except Exception as error:
            device = next(encoder.parameters()).device
            if device.type == "cpu" or not is_out_of_memory(error):
                raise
        # only now is the error gone, and with it what the failed call held
        encoder.to("cpu")
        tell_crowded(device)
        return self._rows(encoder, tokens)

    @abstractmethod
    def _rows(self, encoder: Any, tokens: list[int]) -> Tensor:
        """Return what an encoder makes of tokens ``[rows, D]``, on the CPU."""
