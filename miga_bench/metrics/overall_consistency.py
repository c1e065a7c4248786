"""Overall consistency as a torchmetric."""

from __future__ import annotations

import tempfile
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from miga_bench.errors import UserError
from miga_bench.metrics.base import Aggregate, VideoScore
from miga_bench.metrics.functional.agreement import middle_frames, text_agreement
from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.viclip import ViClip, VideoTextEncoder

_SIDE = 224
_SHAPE = (3, _SIDE, _SIDE)
_BYTES = 3 * _SIDE * _SIDE


class OverallConsistency(VideoScore):
    r"""How well videos agree with their prompts: VBench's overall consistency.

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``, and ``prompt``; as output of ``compute`` it gives a float64 scalar in [-1, 1].

    Which 8 frames are looked at is known at the end only, so all wait as 224 x 224 pixels in a
    temporary file: 151 kB a frame on disk, a few frames in memory.

    Args:
        encoder: Embeds videos and texts; ViCLIP if None.
        aggregate: See ``VideoScore``.
        **kwargs: Of ``torchmetrics.Metric``.

    Raises:
        UserError: ViCLIP or its weights cannot be had.
    """

    name: ClassVar[str] = "overall_consistency"
    least_frames: ClassVar[int] = 1
    plot_lower_bound: float = -1.0
    _waiting: IO[bytes] | None = None

    def __init__(
        self,
        encoder: VideoTextEncoder | None = None,
        aggregate: Aggregate | None = None,
        **kwargs: Any,
    ) -> None:
        encoder = encoder or ViClip()
        self._networks = {"encoder": encoder}
        super().__init__(aggregate, **kwargs)
        self.encoder = encoder

    def begin(
        self, prompt: str | None = None, video_id: str | None = None, fps: float | None = None
    ) -> None:
        """Begin a video made from ``prompt``; see ``update``.

        Raises:
            UserError: There is no prompt.
        """
        if not prompt:
            raise UserError(
                "overall_consistency: there is no prompt to compare with; pass prompt= with each video"
            )
        super().begin(prompt, video_id, fps)
        self._text = prompt

    def _terms(self, frames: Tensor) -> Tensor:
        if self._waiting is None:
            self._waiting = tempfile.TemporaryFile()  # noqa: SIM115 - open until the video ends
        for frame in frames.split(1):
            # the original resizes whole numbers here, so what waits has lost nothing
            small = preprocess.short_side(frame, _SIDE, "bicubic").clamp(0, 255).round()
            pixels = preprocess.center_crop(small, _SIDE).to("cpu", torch.uint8)
            self._waiting.write(pixels.contiguous().numpy().tobytes())
        return torch.zeros(0)

    def _last_terms(self) -> list[float]:
        chosen = []
        for index in middle_frames(self._frames):
            self._waiting.seek(index * _BYTES)  # type: ignore[union-attr]
            raw = bytearray(self._waiting.read(_BYTES))  # type: ignore[union-attr]
            chosen.append(torch.frombuffer(raw, dtype=torch.uint8).reshape(_SHAPE))
        video = self.encoder.embed_video(torch.stack(chosen).to(self.device))
        text = self.encoder.embed_text(self._text)
        return [text_agreement(video, text.to(video.device)).item()]

    def _forget(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
        self._waiting = None
