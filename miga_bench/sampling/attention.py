"""Attention over frames for methods that make a long video as one clip: full, and within reach.

Layouts: F frames of P tokens, ``[B, F, P, heads, a]``. Joint attention (Wan) lets a token attend to
every token of the frames it may see, attention per place (VideoCrafter2) only to its own place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miga_bench.backbones.fused_attention import fused_attention

# Queries of one call with a mask; a frame with more tokens is a call of its own and needs no mask.
_MASKED_QUERIES = 512


def _rows(x: Tensor, joint: bool) -> Tensor:
    """Return ``[B, heads, F * P, a]`` of joint attention, else ``[B * P, heads, F, a]``; views."""
    if joint:
        return x.flatten(1, 2).transpose(1, 2)
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)


def full_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    joint: bool,
    sharpness: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Attend over all frames.

    Args:
        query: ``[B, F, P, heads, a]``.
        key: ``[B, G, P, heads, a]``; G may differ from F.
        value: As ``key``.
        joint: Whether a token attends to all places or only to its own.
        sharpness: Factor on the scores; above 1 for more keys than the network was trained on.
        mask: ``[F, G]``, for joint attention ``[F * P, G * P]``; False hides a key from a query.

    Returns:
        ``[B, F, P, heads, a]``.
    """
    batch, frames, places, _, width = query.shape
    out = fused_attention(
        _rows(query, joint),
        _rows(key, joint),
        _rows(value, joint),
        mask=mask,
        scale=None if sharpness == 1 else sharpness / width**0.5,
    )
    if joint:
        return out.transpose(1, 2).unflatten(1, (frames, places))
    return out.unflatten(0, (batch, places)).permute(0, 3, 1, 2, 4)


def local_attention(query: Tensor, key: Tensor, value: Tensor, reach: int, joint: bool) -> Tensor:
    """Attend over the frames ``|i - j| <= reach``, fewer at the ends.

    The result is exact; frames are processed in parts, so that no score or mask of all frames by all frames is
    ever made.

    Args:
        query: ``[B, F, P, heads, a]``.
        key: As ``query``.
        value: As ``query``.
        reach: Frames to either side, at least 0; ``F - 1`` and more is full attention.
        joint: Whether a token attends to all places or only to its own.

    Returns:
        ``[B, F, P, heads, a]``.
    """
    frames = query.shape[1]
    if reach >= frames - 1:
        return full_attention(query, key, value, joint)
    tokens = query.shape[2] if joint else 1
    # More frames at once waste more on keys that the mask hides, fewer more on calls.
    count = max(1, min(2 * reach + 1, _MASKED_QUERIES // tokens))
    place = torch.arange(frames, device=query.device)
    parts = []
    for first in range(0, frames, count):
        own = slice(first, min(first + count, frames))
        seen = slice(max(0, first - reach), min(own.stop + reach, frames))
        mask = None
        if own.stop - own.start > 1:  # a single frame sees all that is cut out for it
            mask = (place[own, None] - place[None, seen]).abs() <= reach
            mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        parts.append(full_attention(query[:, own], key[:, seen], value[:, seen], joint, mask=mask))
    return torch.cat(parts, dim=1)
