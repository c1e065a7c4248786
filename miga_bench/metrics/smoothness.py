"""Motion smoothness as a torchmetric."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from miga_bench.metrics.base import Aggregate, VideoScore
from miga_bench.metrics.functional.smoothness import _smoothness_update
from miga_bench.metrics.networks.base import Interpolator


class MotionSmoothness(VideoScore):
    r"""How well motion agrees with interpolation: VBench's motion smoothness.

    .. math:: s = \frac{255 - \frac{1}{n} \sum_i \overline{|g(x_{2i}, x_{2i+2}) - x_{2i+1}|}}{255}

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``, T >= 3; as output of ``compute`` it gives a float64 scalar in [0, 1]. With
    AMT-S, sides have 113 pixels at least.

    Args:
        interpolator: Predicts the frame halfway between two. Optical flow (OpenCV's DIS) if None,
            which needs no download; VBench's own is AMT-S.
        aggregate: See ``VideoScore``.
        **kwargs: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> from miga_bench.metrics import MotionSmoothness
        >>> score = MotionSmoothness()
        >>> score.update(torch.zeros(5, 3, 64, 64, dtype=torch.uint8))
        >>> score.compute()
        tensor(1., dtype=torch.float64)
    """

    name: ClassVar[str] = "motion_smoothness"
    least_frames: ClassVar[int] = 3
    _waiting: Tensor | None

    def __init__(
        self,
        interpolator: Interpolator | None = None,
        aggregate: Aggregate | None = None,
        **kwargs: Any,
    ) -> None:
        if interpolator is None:
            from miga_bench.metrics.networks.flow import FlowInterpolator

            interpolator = FlowInterpolator()
        self._networks = {"interpolator": interpolator}
        super().__init__(aggregate, **kwargs)
        self.interpolator = interpolator

    def _terms(self, frames: Tensor) -> Tensor:
        terms, self._waiting = _smoothness_update(frames, self._waiting, self.interpolator.midpoint)
        return terms

    def _forget(self) -> None:
        self._waiting = None

    def _from_mean(self, mean: float) -> float:
        return (255 - mean) / 255
