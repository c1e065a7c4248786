"""Text embeddings on disk, so that a large encoder runs once for a prompt.

Those not used for longest make room: a server would fill its disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from miga_bench.offline import keep_cache

MOST_BYTES = 16 * 2**30


class EmbeddingCache:
    """Embeddings on disk, one safetensors file each, named by the hash of what they depend on.

    Args:
        folder: Of the files.
        most: Bytes of all of them.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self.folder, self.most = folder, most

    def path(self, identity: str, tokens: Sequence[int], length: int, dtype: torch.dtype) -> Path:
        """Return the file of a spelled prompt under a model's identity."""
        content = json.dumps([identity, list(tokens), length, str(dtype)])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"

    def load(self, path: Path) -> Tensor | None:
        """Return ``[tokens, D]``, or None if there is no whole file."""
        try:
            embedding = load_file(path)["embedding"]
        except (OSError, SafetensorError, KeyError):
            return None
        with suppress(OSError):  # of another user, or read-only
            os.utime(path)
        return embedding

    def save(self, path: Path, embedding: Tensor) -> None:
        """Write ``[tokens, D]`` whole; a folder that takes no more is only a notice."""
        keep_cache(
            path,
            save({"embedding": embedding.contiguous().cpu()}),
            "the text encoder runs again for this prompt; set MIGA_BENCH_CACHE to a folder of yours",
        )
        self._make_room(path)

    def _make_room(self, newest: Path) -> None:
        """Remove what was not used for longest, but never what was just written."""
        facts: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(OSError):  # another process removed it
                fact = path.stat()
                facts.append((fact.st_mtime, fact.st_size, path))
        too_many = sum(size for _, size, _ in facts) - self.most
        for _, size, path in sorted(facts):
            if too_many <= 0:
                return
            if path != newest:
                with suppress(OSError):  # of another user
                    path.unlink(missing_ok=True)
                    too_many -= size
