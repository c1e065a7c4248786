"""Temporal flickering as a torchmetric."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from miga_bench.metrics.base import VideoScore
from miga_bench.metrics.functional.flickering import _flickering_update


class TemporalFlickering(VideoScore):
    r"""How little successive frames differ: VBench's temporal flickering.

    .. math:: s = \frac{255 - \frac{1}{T-1} \sum_t \overline{|x_t - x_{t+1}|}}{255}

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``; as output of ``compute`` it gives a float64 scalar in [0, 1]. It rewards a
    video that stands still: read it beside a score of motion.

    Example:
        >>> import torch
        >>> from miga_bench.metrics import TemporalFlickering
        >>> score = TemporalFlickering()
        >>> score.update(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
        >>> score.compute()
        tensor(1., dtype=torch.float64)
    """

    name: ClassVar[str] = "temporal_flickering"
    _newest: Tensor | None

    def _terms(self, frames: Tensor) -> Tensor:
        terms = _flickering_update(frames, self._newest)
        self._newest = frames[-1].clone()
        return terms

    def _forget(self) -> None:
        self._newest = None

    def _from_mean(self, mean: float) -> float:
        return (255 - mean) / 255
