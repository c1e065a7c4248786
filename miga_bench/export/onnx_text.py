"""Prompts to embeddings by an exported text encoder and a tokenizer's file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from miga_bench.backbones.checkpoint import BIG_ENCODER, fingerprint_of
from miga_bench.backbones.embedding_cache import EmbeddingCache
from miga_bench.backbones.memory import tell_crowded
from miga_bench.backbones.prompt_text import PromptText
from miga_bench.errors import UserError, is_out_of_memory
from miga_bench.export.facts import ExportFacts
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Sidecar
from miga_bench.offline import cache_folder

PADDING = 0
KNOWN = 64  # embeddings of a small encoder that stay in memory

Made = TypeVar("Made")


class OnnxText(PromptText):
    """An exported text encoder.

    As in PyTorch, a large one is loaded for prompts that are new, its embeddings are kept on disk, and it
    leaves memory behind every ``encode``. One for which memory runs out goes on on the CPU, and a line says so.

    Args:
        sidecar: The encoder's.
        open_session: Loads its graph on a device; its files were held against their hashes.
        folder: The tokenizer's.
        facts: Of the backbone.
        device: Where it is to run, as torch names it.

    Raises:
        UserError: The encoder's files are missing or damaged, or the tokenizer is.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        open_session: Callable[[str], Session],
        folder: Path,
        facts: ExportFacts,
        device: str = "cpu",
    ) -> None:
        self.sidecar, self._open, self._device = sidecar, open_session, device
        self.length, self._unknown = int(facts.text["length"]), facts.text["unknown"]
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain ones
            raise UserError(
                f"{path} is no tokenizer that can be read ({error}): export again"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        sidecar.check()
        size = sum((sidecar.folder / name).stat().st_size for name in sidecar.sha256)
        self._session: Session | None = None
        self._known: OrderedDict[str, Tensor] = OrderedDict()  # by prompt, the last used last
        self.keep = size < BIG_ENCODER
        self._cache = None if self.keep else EmbeddingCache(cache_folder("text"))
        self._identity = f"{sidecar.identity} {fingerprint_of([path], folder)}"
        if self._cache is None:
            self._at_work(lambda session: None)

    @property
    def loaded(self) -> bool:
        """Whether the encoder is in memory."""
        return self._session is not None

    @property
    def unknown(self) -> int | None:
        """The token of words that have no other; None if every word has."""
        token: int | None = self._unknown
        return token

    def spell(self, text: str) -> list[int]:
        """Return a cleaned text's tokens with all marks, however many they are."""
        tokens: list[int] = self._tokenizer.encode(text).ids
        return tokens

    def unload(self) -> None:
        """Drop the encoder; a later prompt loads it again."""
        self._session = None

    def _embed(self, prompt: str, tokens: list[int]) -> Tensor:
        """Return ``[up to length, D]`` from memory, from disk, or from the encoder."""
        if self._cache is None:
            if prompt not in self._known:
                self._known[prompt] = self._run(tokens)
                if len(self._known) > KNOWN:
                    self._known.popitem(last=False)
            self._known.move_to_end(prompt)
            return self._known[prompt]
        path = self._cache.path(self._identity, tokens, self.length, torch.float32)
        row = self._cache.load(path)
        if row is None:
            row = self._run(tokens)
            if "mask" in self.sidecar.inputs:
                row = row[: len(tokens)]  # the rest is zero
            self._cache.save(path, row)
        return row

    def _run(self, tokens: list[int]) -> Tensor:
        missing = self.length - len(tokens)
        inputs = {"tokens": torch.tensor([tokens + [PADDING] * missing])}
        if "mask" in self.sidecar.inputs:
            inputs["mask"] = torch.tensor([[1] * len(tokens) + [0] * missing])
        return self._at_work(lambda session: session(inputs)["text"][0].cpu())

    def _at_work(self, work: Callable[[Session], Made]) -> Made:
        """Return what comes of some work with the encoder, loaded if it is not; if need be on the CPU."""
        try:
            return work(self._loaded())
        except Exception as error:
            if self._device == "cpu" or not is_out_of_memory(error):
                raise
        # only now is the error gone, and what it held
        crowded, self._device, self._session = self._device, "cpu", None
        tell_crowded(torch.device(crowded))
        return work(self._loaded())

    def _loaded(self) -> Session:
        if self._session is None:
            self._session = self._open(self._device)
        return self._session
