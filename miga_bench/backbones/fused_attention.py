"""Scaled dot-product attention of any number of sequences, and arithmetic that no autocast narrows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

# CUDA kernels put sequences on an axis of their launch grid that is no longer than this: with more they fail
# ("invalid configuration argument"), and VideoCrafter2 has one for each place of each row.
MOST_SEQUENCES = 65_535


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend in as many kernel calls as the number of sequences takes.

    Args:
        query: ``[N, heads, F, a]``.
        key: ``[N, heads, G, a]``.
        value: As ``key``.
        mask: ``[F, G]``; where it is False is not looked.
        scale: Of the scores; None is ``1 / sqrt(a)``.

    Returns:
        ``[N, heads, F, a]``.
    """
    # a graph is written for any number of rows, and run by other kernels
    if torch.compiler.is_exporting() or len(query) <= MOST_SEQUENCES:
        return nnf.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    parts = zip(*(x.split(MOST_SEQUENCES) for x in (query, key, value)), strict=True)
    return torch.cat(
        [
            nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            for q, k, v in parts
        ]
    )


def unnarrowed(like: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which float32 stays float32 on a tensor's device, whatever autocast is on."""
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
