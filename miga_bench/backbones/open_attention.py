"""A denoiser whose attention over frames a method may do in the network's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from miga_bench.backbones.base import FrameAttention


class OpenAttention(nn.Module):
    """What denoisers of ours share; their ``forward`` hands ``attention`` to the network with every call."""

    def __init__(self) -> None:
        super().__init__()
        self._attention: FrameAttention | None = None

    @property
    def attention(self) -> FrameAttention | None:
        """What stands in for the attention over frames now; None is the network's own."""
        return self._attention

    @contextmanager
    def attending(self, attention: FrameAttention) -> Iterator[None]:
        """Let ``attention`` do the attention over frames while the context is entered."""
        before = self._attention
        self._attention = attention
        try:
            yield
        finally:
            self._attention = before
