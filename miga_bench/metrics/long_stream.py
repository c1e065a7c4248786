"""VBench-Long on a stream of frames: clips scored as they end, the fast branch beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from miga_bench.errors import UserError
from miga_bench.metrics.base import VideoScore
from miga_bench.metrics.functional.consistency import ConsistencyState, _consistency_update
from miga_bench.metrics.long import Clip, ClipStream, LongVideo
from miga_bench.metrics.networks.base import FrameEncoder, check_frames


class LongVideos:
    """Scores one video after the other clip by clip; holds one clip of frames, whatever the length.

    Args:
        scores: The dimensions, each scoring a clip as if it were a video.
        fast: Encoders of the fast branch, by the names of their dimensions.
        length: Frames of a clip, from ``clip_length``.
        fps: Frames per second, for scores that depend on it; whole ones count, for the original writes clips at
            that rate and reads it back.
    """

    def __init__(
        self,
        scores: Sequence[VideoScore],
        fast: Mapping[str, FrameEncoder],
        length: int,
        fps: float | None = None,
    ) -> None:
        self.scores = list(scores)
        self.fast = dict(fast)
        self.length, self.fps = length, None if fps is None else int(fps)
        self.begin()

    def begin(self, prompt: str | None = None) -> None:
        """Begin a video; one that is running is dropped.

        Args:
            prompt: What it was made from, for scores that compare with it; every clip is held against it.
        """
        self._prompt = prompt
        self._stream: ClipStream[Tensor] = ClipStream(self.length)
        self._clips: dict[str, list[float]] = {score.name: [] for score in self.scores}
        self._reasons: dict[str, str] = {}
        self._fast: dict[str, _Fast] = {name: _Fast(net) for name, net in self.fast.items()}

    def extend(self, frames: Tensor) -> None:
        """Show the video's next frames, uint8 ``[T, 3, H, W]``.

        Raises:
            UserError: They are no such tensor.
        """
        check_frames(frames, "VBench-Long")
        for frame in frames:
            clip = self._stream.push(frame.clone())
            if clip is not None:
                self._score(clip)

    def end(self, name: str) -> dict[str, LongVideo]:
        """End the video and return what was measured, by dimension.

        Args:
            name: As ``LongVideo`` has it.

        Raises:
            UserError: No dimension has a score of it; the first one's reason.
        """
        clip = self._stream.finish()
        if clip is not None:
            self._score(clip)
        frames = min(self._stream.seen, self.length)
        found = {
            dimension: LongVideo(name, (), frames, reason=self._reasons[dimension])
            if dimension in self._reasons
            else LongVideo(name, tuple(clips), frames, self._fast_score(dimension, clips))
            for dimension, clips in self._clips.items()
        }
        self.begin()
        if not any(video.clips for video in found.values()):
            reasons = [video.reason for video in found.values() if video.reason is not None]
            raise UserError(reasons[0] if reasons else "the video has no frames")
        return found

    def _fast_score(self, dimension: str, clips: Sequence[float]) -> float | None:
        fast = self._fast.get(dimension)
        return fast.score() if fast is not None and len(clips) > 1 else None

    def _score(self, clip: Clip[Tensor]) -> None:
        frames = torch.stack(clip.items)  # one tensor for all: encoders that are shared run once
        for score in self.scores:
            if score.name in self._reasons:
                continue
            score.reset()
            score.begin(self._prompt, fps=self.fps)
            score.extend(frames)
            try:
                self._clips[score.name].append(score.end())
            except UserError as error:  # this dimension has none, the others may
                self._reasons[score.name] = str(error)
        for fast in self._fast.values():
            fast.push(frames[:1])


class _Fast:
    """Consistency over the first frames of a video's clips."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.encoder = encoder
        self.total, self.count = 0.0, 0
        self._state: ConsistencyState | None = None

    def push(self, frame: Tensor) -> None:
        terms, self._state = _consistency_update(self.encoder(frame), self._state)
        for term in terms.double().tolist():
            self.total, self.count = self.total + term, self.count + 1

    def score(self) -> float:
        return self.total / self.count
