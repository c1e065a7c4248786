"""What tensorrt_rtx compiles for a GPU when it meets a shape, kept from start to start.

An engine of tensorrt_rtx is made into kernels on the GPU that runs it, which takes its time at every start.
They lie in the user's own cache and not beside the engine: they are code, and a folder may come from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

from miga_bench.offline import cache_folder, keep_cache


class Kernels:
    """The kernels of one engine on one model of GPU, shared by all its contexts.

    Args:
        engine: The engine's hash.
        gpu: Name of the GPU.
        version: Of tensorrt_rtx, which looks itself whether a file is of its version, GPU and driver.

    Attributes:
        path: Where they lie.
    """

    def __init__(self, engine: str, gpu: str, version: str) -> None:
        key = hashlib.sha256(json.dumps([engine, gpu, version]).encode()).hexdigest()[:32]
        self.path = cache_folder("tensorrt-rtx") / f"{key}.kernels"
        self._cache: Any = None
        self._written = b""

    def attach(self, config: Any) -> None:
        """Let a context that is made by this runtime configuration use them, and add its own."""
        if not hasattr(config, "create_runtime_cache"):
            return
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                known = self.path.read_bytes()
                # what is damaged, or of another driver, is refused, and then compiled and written anew
                if self._cache.deserialize(known):
                    self._written = known
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write them if there are new ones; a folder that takes no more is only a notice."""
        content = None if self._cache is None else self._cache.serialize()
        if content is None or bytes(content) == self._written:
            return
        self._written = bytes(content)
        keep_cache(
            self.path,
            self._written,
            "the next start compiles the engine's kernels again; set MIGA_BENCH_CACHE to a folder of yours",
        )
