"""Several scores of the same videos at once, and their mean: MIGA's overall score."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.wrappers.abstract import WrapperMetric

from miga_bench.errors import UserError
from miga_bench.metrics.base import VideoScore
from miga_bench.metrics.consistency import BackgroundConsistency, SubjectConsistency
from miga_bench.metrics.flickering import TemporalFlickering
from miga_bench.metrics.networks.base import FrameEncoder, Interpolator
from miga_bench.metrics.smoothness import MotionSmoothness
from miga_bench.metrics.statistics import Estimate, estimate


class OverallScore(WrapperMetric):
    r"""The mean of four of VBench's dimensions, the overall score (O.S.) of MIGA's tables.

    .. math:: \text{O.S.} = (\text{S.C.} + \text{B.C.} + \text{M.S.} + \text{T.F.}) / 4

    As input to ``update`` the score accepts ``video`` (:class:`~torch.Tensor`), uint8
    ``[T, 3, H, W]``, T >= 3, or the video in pieces by ``begin``, ``extend`` and ``end``; as output
    of ``compute`` it gives a float64 scalar in [0, 1]. ``scores`` holds the four.

    Args:
        subject: Encoder of subject consistency; None is the embedded one.
        background: Encoder of background consistency; None is the embedded one. Scores that share
            an encoder share its pass over the frames.
        interpolator: Of motion smoothness; None is optical flow.
        **kwargs: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> from miga_bench.metrics import OverallScore
        >>> score = OverallScore()
        >>> score.update(torch.zeros(5, 3, 64, 64, dtype=torch.uint8))
        >>> print(score.label, round(score.compute().item(), 4))
        overall_score[tiny,dis] 1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    name: ClassVar[str] = "overall_score"

    def __init__(
        self,
        subject: FrameEncoder | None = None,
        background: FrameEncoder | None = None,
        interpolator: Interpolator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scores = torch.nn.ModuleList(
            [
                SubjectConsistency(subject, **kwargs),
                BackgroundConsistency(background, **kwargs),
                MotionSmoothness(interpolator, **kwargs),
                TemporalFlickering(**kwargs),
            ]
        )

    def _members(self) -> list[VideoScore]:
        return list(self.scores)  # type: ignore[arg-type]

    def update(
        self,
        video: Tensor,
        prompt: str | None = None,
        video_id: str | None = None,
        fps: float | None = None,
    ) -> None:
        """Score one video; see ``VideoScore.update``."""
        self.begin(prompt, video_id, fps)
        self.extend(video)
        self.end()

    def begin(
        self,
        prompt: str | None = None,
        video_id: str | None = None,
        fps: float | None = None,
    ) -> None:
        """Begin a video; see ``VideoScore.begin``."""
        name = video_id if video_id is not None else uuid.uuid4().hex
        for score in self._members():
            score.begin(prompt, name, fps)

    def extend(self, frames: Tensor) -> None:
        """Show the next frames; see ``VideoScore.extend``."""
        for score in self._members():
            score.extend(frames)

    def end(self) -> float:
        """End the video and return its overall score; see ``VideoScore.end``.

        Raises:
            UserError: One of the four cannot score it; it leaves no trace in any.
        """
        check_all(self._members())
        return mean_of([score.end() for score in self._members()])

    def forward(
        self,
        video: Tensor,
        prompt: str | None = None,
        video_id: str | None = None,
        fps: float | None = None,
    ) -> Tensor:
        """Score one video as ``update`` does; return its overall score, a float64 scalar."""
        self.begin(prompt, video_id, fps)
        self.extend(video)
        value = torch.tensor(self.end(), dtype=torch.float64)
        self._forward_cache = value  # type: ignore[assignment]  # what Lightning logs of a step
        return value

    def compute(self) -> Tensor:
        """Return the mean of the four scores, a float64 scalar; NaN without videos."""
        return torch.stack([score.compute() for score in self._members()]).mean()

    def estimate(self, level: float = 0.95) -> Estimate:
        """Return the mean over videos with its interval, clustered by prompt.

        All ranks must call it, as ``compute``.

        Args:
            level: Of the interval, in (0, 1).
        """
        with ExitStack() as together:
            for score in self._members():
                together.enter_context(score.sync_context())
            by_score = [score.per_video() for score in self._members()]
            prompts = self._members()[0].prompt_of()
        values = {video: mean_of([found[video] for found in by_score]) for video in by_score[0]}
        return estimate(list(values.values()), [prompts[video] for video in values], level)

    def reset(self) -> None:
        """Forget all videos."""
        super().reset()
        for score in self._members():
            score.reset()

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one or several values; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)

    @property
    def label(self) -> str:
        """The name, with the networks that are not the original's in brackets."""
        labels = [n.label for s in self._members() for n in s.networks().values() if n.label]
        return f"{self.name}[{','.join(dict.fromkeys(labels))}]" if labels else self.name

    def provenance(self) -> dict[str, Any]:
        """Return how each of the four was made."""
        return {"score": self.label, "scores": [score.provenance() for score in self._members()]}


def check_all(scores: Sequence[VideoScore]) -> None:
    """Check that all scores have a value of the running video; if not, drop it from all.

    Raises:
        UserError: One has none.
    """
    refusals = [refusal for score in scores if (refusal := score.refusal()) is not None]
    if not refusals:
        return
    for score in scores:
        score.drop()
    raise UserError(refusals[0])


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)
