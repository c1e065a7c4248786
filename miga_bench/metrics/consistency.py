"""Subject and background consistency as torchmetrics."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from miga_bench.metrics.base import Aggregate, VideoScore
from miga_bench.metrics.functional.consistency import ConsistencyState, _consistency_update
from miga_bench.metrics.networks.base import FrameEncoder


class FeatureConsistency(VideoScore):
    """Consistency of an encoder's features over time, the common form of the two scores below.

    Args:
        encoder: Frames to features. The embedded one if None, which needs no download; VBench's
            own come from ``miga_bench.metrics.networks``.
        aggregate: See ``VideoScore``.
        **kwargs: Of ``torchmetrics.Metric``.
    """

    original_aggregate: ClassVar[Aggregate] = "frame"
    _state: ConsistencyState | None

    def __init__(
        self,
        encoder: FrameEncoder | None = None,
        aggregate: Aggregate | None = None,
        **kwargs: Any,
    ) -> None:
        if encoder is None:
            from miga_bench.metrics.networks.tiny import tiny_encoder

            encoder = tiny_encoder()
        self._networks = {"encoder": encoder}
        super().__init__(aggregate, **kwargs)
        self.encoder = encoder

    def _terms(self, frames: Tensor) -> Tensor:
        terms, self._state = _consistency_update(self.encoder(frames), self._state)
        return terms

    def _forget(self) -> None:
        self._state = None


class SubjectConsistency(FeatureConsistency):
    r"""Whether the subject stays itself: VBench's subject consistency.

    .. math:: s = \frac{1}{T-1} \sum_{t=1}^{T-1} \frac{[f_t \cdot f_{t-1}]_+ + [f_t \cdot f_0]_+}{2}

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``; as output of ``compute`` it gives a float64 scalar in [0, 1].

    VBench's network is DINO ViT-B/16; the original weighs videos by their frames on one device.

    Example:
        >>> import torch
        >>> from miga_bench.metrics import SubjectConsistency
        >>> score = SubjectConsistency()
        >>> score.update(torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
        >>> print(score.label, round(score.compute().item(), 4))
        subject_consistency[tiny] 1.0
    """

    name: ClassVar[str] = "subject_consistency"


class BackgroundConsistency(FeatureConsistency):
    r"""Whether the scene stays itself: VBench's background consistency.

    The same formula as ``SubjectConsistency`` on another network's features: VBench's is CLIP
    ViT-B/32. Input and output are those of ``SubjectConsistency``.
    """

    name: ClassVar[str] = "background_consistency"
