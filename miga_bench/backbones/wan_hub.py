"""Wan2.1 from the Hugging Face Hub; the text encoder is fetched only when it has to run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import UMT5EncoderModel

from miga_bench.backbones.wan_checkpoint import DiffusersFolder
from miga_bench.errors import UserError

MODEL_PARTS = ("transformer", "vae", "tokenizer", "scheduler")


class HubFolder(DiffusersFolder):
    """A diffusers repository on the Hub, or its copy in the Hub's cache on this machine.

    Where the embeddings of all prompts are in the cache, the text encoder, most of the download,
    is never fetched: it may have run on another machine, from the same repository.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository
        super().__init__(download(repository, MODEL_PARTS))

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> UMT5EncoderModel:
        """Fetch and load ``text_encoder/``."""
        download(self.repository, ("text_encoder",))
        return super().text_encoder(dtype, device)

    def text_is_big(self) -> bool:
        """Nothing on the Hub is small."""
        return True

    @cached_property
    def text_identity(self) -> str:
        """The repository and its commit, which names the snapshot's folder."""
        return f"{self.repository}@{self.root.name}"


def download(repository: str, parts: Sequence[str], files: Sequence[str] = ()) -> Path:
    """Return the local copy of parts of a repository, fetching what is not there.

    Args:
        repository: ``organization/name``.
        parts: Folders.
        files: Files besides ``model_index.json``, patterns allowed.

    Raises:
        UserError: They are neither on disk nor within reach.
    """
    patterns = ["model_index.json", *files, *(f"{part}/*" for part in parts)]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:160]
        raise UserError(
            f"cannot fetch {repository} from the Hugging Face Hub ({reason}); where there is a "
            f"network run `hf download {repository} --local-dir DIR`, then give DIR as the backbone"
        ) from None
