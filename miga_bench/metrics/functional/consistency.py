"""Consistency of features over time: VBench's subject and background consistency.

VBench (Huang et al., CVPR 2024), section 3.2. With unit features f_t, for t >= 1::

    c_t = (max(0, <f_t, f_{t-1}>) + max(0, <f_t, f_0>)) / 2,    s = mean of c_t
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ConsistencyState:
    """What has to be kept of a video: the features ``[D]`` of its first and its newest frame."""

    first: Tensor
    newest: Tensor


def _consistency_update(
    features: Tensor, state: ConsistencyState | None
) -> tuple[Tensor, ConsistencyState]:
    """Return the terms that the next features ``[T, D]`` complete, and the new state."""
    if state is None:
        state = ConsistencyState(features[0], features[0])
        features_before, later = features[:-1], features[1:]
    else:
        features_before, later = torch.cat([state.newest[None], features[:-1]]), features
    to_previous = (later * features_before).sum(-1).clamp_min(0)
    to_first = (later * state.first).sum(-1).clamp_min(0)
    return (to_previous + to_first) / 2, ConsistencyState(state.first, features[-1])


def feature_consistency(features: Tensor) -> Tensor:
    """Return how alike a video's frames are to the one before and to the first.

    Args:
        features: ``[T, D]`` of unit length, T >= 2.

    Returns:
        A scalar in [0, 1]; 1 where all features are one.

    Example:
        >>> import torch
        >>> turning = torch.tensor([0.0, 0.1, 0.2])
        >>> feature_consistency(torch.stack([turning.cos(), turning.sin()], dim=1))
        tensor(0.9913)
    """
    return _consistency_update(features, None)[0].mean()
