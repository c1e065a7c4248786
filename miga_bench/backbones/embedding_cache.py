"""Text embeddings on disk, so that a large encoder runs once for a prompt."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)


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
        """Write ``[tokens, D]`` atomically; a folder that cannot be written to is only a warning."""
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"embedding": embedding.contiguous().cpu()}, part)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink()
            logger.warning("text embeddings are not kept: %s", error)
