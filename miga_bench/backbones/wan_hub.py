"""Wan2.1 from the Hugging Face Hub; the text encoder is fetched only when it has to run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from miga_bench.backbones.hub_files import cannot_fetch, download
from miga_bench.backbones.wan_checkpoint import (
    INDEX,
    ORIGINAL_TEXT,
    ORIGINAL_TOKENIZER,
    ORIGINAL_TRANSFORMER,
    ORIGINAL_VAE,
    DiffusersFolder,
    WanSource,
    check_index,
    find_source,
)
from miga_bench.errors import UserError

AUTHORS = "Wan-AI/Wan2.1"  # how the names of their repositories begin
MODEL_PARTS = ("transformer", "vae", "tokenizer", "scheduler")
# small files that tell the layout; the last one has the original layout's number of heads
MARKS = ("transformer/config.json", "config.json")


class HubSource(WanSource):
    """A repository on the Hub in either layout, or its copy in the Hub's cache on this machine.

    Where the embeddings of all prompts are in the cache, the text encoder, most of the download,
    is never fetched: it may have run on another machine, from the same repository.
    """

    text_comes_later = True

    def __init__(self, repository: str) -> None:
        self.repository = repository
        root = download(repository, (), MARKS)
        super().__init__(root)
        if any((root / name).exists() for name in (INDEX, MARKS[0])):
            check_index(root)  # before gigabytes are fetched
            self._fetch(*MODEL_PARTS)
        else:
            stem = ORIGINAL_TRANSFORMER.partition(".")[0]  # one file, or shards with an index
            self._fetch(ORIGINAL_TOKENIZER, files=(f"{stem}*.safetensors*", ORIGINAL_VAE))
        if not root.is_dir():
            raise UserError(
                f"{repository} on the Hub holds none of the files of a Wan2.1 model, in diffusers' layout or "
                "in the original one: give another repository"
            )
        self._found = find_source(root)

    def _fetch(self, *parts: str, files: Sequence[str] = ()) -> None:
        # of the same commit, whatever has been published since
        download(self.repository, parts, files, revision=self.root.name)

    def _fetch_text(self) -> None:
        if isinstance(self._found, DiffusersFolder):
            where = "text_encoder"
            self._fetch(where)
        else:
            where = ORIGINAL_TEXT
            self._fetch(files=(where,))
        # without a network the Hub's client takes a copy without it for whole
        if not (self.root / where).exists():
            raise cannot_fetch(self.repository, f"{where} is not on this machine")

    def transformer(self, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
        """Load the denoiser."""
        return self._found.transformer(dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> AutoencoderKLWan:
        """Load the autoencoder."""
        return self._found.vae(dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> UMT5EncoderModel:
        """Fetch and load the text encoder."""
        self._fetch_text()
        return self._found.text_encoder(dtype, device)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self._found.tokenizer

    def model_files(self) -> list[Path]:
        """Return the weight files of the denoiser and the autoencoder."""
        return self._found.model_files()

    def text_files(self) -> list[Path]:
        """Fetch and return the weight files of the text encoder."""
        self._fetch_text()
        return self._found.text_files()

    def flow_shift(self) -> float | None:
        """Return the timestep shift the model's files ask for; the authors' ask for none that counts."""
        # Their scheduler's file says 3.0, their own sampler and MIGA's release take 5.0.
        return None if self.repository.startswith(AUTHORS) else self._found.flow_shift()

    def published(self) -> bool:
        """Tell whether this is one of the authors' models or made of one, not one trained from scratch."""
        return self._found.published()

    def text_is_big(self) -> bool:
        """Nothing on the Hub is small."""
        return True

    @cached_property
    def text_identity(self) -> str:
        """The repository and its commit, which names the snapshot's folder."""
        return f"{self.repository}@{self.root.name}"
