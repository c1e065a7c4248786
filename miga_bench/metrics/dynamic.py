"""Dynamic degree as a torchmetric."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from miga_bench.errors import UserError
from miga_bench.metrics.base import Aggregate, VideoScore
from miga_bench.metrics.functional.dynamics import is_dynamic, pair_motion, stride, threshold
from miga_bench.metrics.networks.base import FlowEstimator


class DynamicDegree(VideoScore):
    r"""Which share of videos moves: VBench's dynamic degree, 1 or 0 for each video.

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``, and ``fps``; as output of ``compute`` it gives a float64 scalar in [0, 1]. With
    RAFT, sides have 121 pixels at least. Two frames are held at a time. There is no default rate: another one
    gives another stride and with it another score.

    Args:
        flow: Estimates motion. OpenCV's DIS if None, which needs no download; VBench's is RAFT.
        aggregate: See ``VideoScore``.
        **kwargs: Of ``torchmetrics.Metric``.
    """

    name: ClassVar[str] = "dynamic_degree"
    _newest: Tensor | None
    _step: int

    def __init__(
        self,
        flow: FlowEstimator | None = None,
        aggregate: Aggregate | None = None,
        **kwargs: Any,
    ) -> None:
        if flow is None:
            from miga_bench.metrics.networks.flow import DisFlow

            flow = DisFlow()
        self._networks = {"flow": flow}
        super().__init__(aggregate, **kwargs)
        self.flow = flow

    def begin(
        self, prompt: str | None = None, video_id: str | None = None, fps: float | None = None
    ) -> None:
        """Begin a video of ``fps`` frames per second; see ``update``.

        Raises:
            UserError: ``fps`` is missing or not above 0.
        """
        if fps is None or not (math.isfinite(fps) and fps > 0):
            raise UserError(
                f"dynamic_degree: fps is {fps}; it must be above 0: pass fps= with each video"
            )
        super().begin(prompt, video_id, fps)
        self._step = stride(fps)

    def _terms(self, frames: Tensor) -> Tensor:
        for index in range(-self._seen % self._step, len(frames), self._step):
            frame = frames[index : index + 1]
            if self._newest is not None:
                motion = pair_motion(self._newest, frame, self.flow.flow).item()
                self._moving += motion > threshold(*frame.shape[-2:])
            self._newest = frame.clone()
            self._sampled += 1
        self._seen += len(frames)
        return torch.zeros(0)

    def _last_terms(self) -> list[float]:
        return [float(is_dynamic(self._moving, self._sampled))]

    def _forget(self) -> None:
        self._newest = None
        self._seen = self._sampled = self._moving = 0
