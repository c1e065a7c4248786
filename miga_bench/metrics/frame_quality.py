"""Aesthetic and imaging quality as torchmetrics: the mean of every frame's mark."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from miga_bench.metrics.base import Aggregate, VideoScore
from miga_bench.metrics.networks.judges import Aesthetic, FrameJudge, Musiq

_BATCH = 32


class FrameQuality(VideoScore):
    """Mean of the marks that a network gives frames, the common form of the two scores below.

    Args:
        judge: Gives the marks; VBench's own if None.
        aggregate: See ``VideoScore``.
        **kwargs: Of ``torchmetrics.Metric``.

    Raises:
        UserError: The network or its weights cannot be had.
    """

    least_frames: ClassVar[int] = 1
    default_judge: ClassVar[type[FrameJudge]]

    def __init__(
        self, judge: FrameJudge | None = None, aggregate: Aggregate | None = None, **kwargs: Any
    ) -> None:
        judge = judge or self.default_judge()
        self._networks = {"judge": judge}
        super().__init__(aggregate, **kwargs)
        self.judge = judge

    def _terms(self, frames: Tensor) -> Tensor:
        return torch.cat([self.judge.marks(part) for part in frames.split(_BATCH)])

    def _forget(self) -> None:
        pass


class AestheticQuality(FrameQuality):
    r"""How beautiful frames are to LAION's predictor: VBench's aesthetic quality.

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``; as output of ``compute`` it gives a float64 scalar, about 0..1.
    """

    name: ClassVar[str] = "aesthetic_quality"
    default_judge: ClassVar[type[FrameJudge]] = Aesthetic


class ImagingQuality(FrameQuality):
    r"""How clean frames are to MUSIQ: VBench's imaging quality.

    Input and output are those of ``AestheticQuality``. The original's file has single videos in
    0..100 and their mean in 0..1; here both are in 0..1.
    """

    name: ClassVar[str] = "imaging_quality"
    default_judge: ClassVar[type[FrameJudge]] = Musiq
