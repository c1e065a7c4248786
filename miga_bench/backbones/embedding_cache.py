"""Text embeddings on disk, so that a large encoder runs once for a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from miga_bench.offline import keep_cache


class EmbeddingCache:
    """Embeddings on disk, one safetensors file each, named by the hash of what they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, identity: str, tokens: Sequence[int], length: int, dtype: torch.dtype) -> Path:
        """Return the file of a spelled prompt under a model's identity."""
        content = json.dumps([identity, list(tokens), length, str(dtype)])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"

    def load(self, path: Path) -> Tensor | None:
        """Return ``[tokens, D]``, or None if there is no whole file."""
        try:
            return load_file(path)["embedding"]
        except (OSError, SafetensorError, KeyError):
            return None

    def save(self, path: Path, embedding: Tensor) -> None:
        """Write ``[tokens, D]`` whole; a folder that takes no more is only a notice."""
        keep_cache(
            path,
            save({"embedding": embedding.contiguous().cpu()}),
            "the text encoder runs again for this prompt; set MIGA_BENCH_CACHE to a folder of yours",
        )
