"""What every score of videos is: fed whole or piece by piece, one value a video, kept for ever.

A score is a torchmetrics ``Metric``. Beside ``update(video)`` it takes a video in pieces, and then
holds a few frames' worth of state, whatever the length::

    score.begin(prompt="a red circle moves right")
    for frames in pieces:           # uint8 [T, 3, H, W]
        score.extend(frames)
    value = score.end()

Every piece of evidence is a term (for flickering, one pair of frames). A video's value is the mean
of its terms, turned into a score by ``from_mean``.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from miga_bench.errors import NumericalError, UserError, counted
from miga_bench.metrics.networks.base import Network, Provenance, check_frames, plain
from miga_bench.metrics.series import Series
from miga_bench.metrics.statistics import Estimate, estimate

Aggregate = Literal["video", "frame", "clip"]
AGGREGATES: tuple[Aggregate, ...] = ("video", "frame", "clip")


# what a clip leaves: the sum and number of its terms, and the hashes of its video and prompt
_ROW = {
    "values": torch.float64,
    "counts": torch.int64,
    "videos": torch.int64,
    "prompts": torch.int64,
}


class Terms(NamedTuple):
    """The evidence of one video: the sum of its terms and their number."""

    total: float
    number: int


class VideoScore(Metric):
    """A score of videos in [0, 1] by whatever evidence a subclass draws from the frames.

    A video that comes twice under one ``video_id``, as where a ``DistributedSampler`` fills up its
    shares, is two clips of it: ``aggregate`` counts it once where it is ``video``, else twice.

    Args:
        aggregate: How values become one number. ``video``: the mean over videos (of each the mean
            over its clips). ``clip``: the mean over clips, as VBench-Long's files have it.
            ``frame``: the mean over all terms of all videos, so that long videos weigh more. None
            is the original's rule for this dimension.
        **kwargs: Of ``torchmetrics.Metric``.

    Attributes:
        name: VBench's name of the dimension.
        least_frames: The shortest video that has a value.
        original_aggregate: The original's rule, on one device.
        series: Of the video that is running or ended last: its score over video time, in a bounded
            number of bins.
        terms: Of the video that ended last.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    name: ClassVar[str]
    least_frames: ClassVar[int] = 2
    original_aggregate: ClassVar[Aggregate] = "video"

    values: list[Tensor]
    counts: list[Tensor]
    videos: list[Tensor]
    prompts: list[Tensor]
    terms: Terms
    _networks: dict[str, Network] = {}  # noqa: RUF012 - a score with networks has its own
    _prompt: str | None
    _size: tuple[int, ...] | None
    _frames: int
    _count: int
    _sum: float

    def __init__(self, aggregate: Aggregate | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if aggregate not in (None, *AGGREGATES):
            raise UserError(
                f"aggregate is {aggregate!r}; it must be one of {', '.join(AGGREGATES)}"
            )
        self.aggregate: Aggregate = aggregate or self.original_aggregate
        for name in _ROW:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        # collections merge scores whose states are equal, and a still video makes many equal
        self.add_state("identity", default=self._identity(), dist_reduce_fx="max")
        self.series = Series()
        self._open: tuple[int, int] | None = None
        self._reset_video()

    # What a subclass says

    @abstractmethod
    def _terms(self, frames: Tensor) -> Tensor:
        """Return the terms ``[n]`` that the next frames ``[T, 3, H, W]`` of a video complete."""

    def _last_terms(self) -> list[float]:
        """Return the terms that only the end of a video completes; most scores have none."""
        return []

    @abstractmethod
    def _forget(self) -> None:
        """Drop what is kept of the running video."""

    def networks(self) -> dict[str, Network]:
        """Return the networks behind the score by their role; none without networks."""
        return self._networks

    def _from_mean(self, mean: float) -> float:
        """Return the score of a mean of terms."""
        return mean

    # Videos

    def update(
        self,
        video: Tensor,
        prompt: str | None = None,
        video_id: str | None = None,
        fps: float | None = None,
    ) -> None:
        """Score one video.

        Args:
            video: uint8 ``[T, 3, H, W]``.
            prompt: What it was made from; videos of one prompt are one cluster of the interval.
            video_id: Clips of one video share it; None is a video of its own.
            fps: Frames per second, for scores that depend on it.

        Raises:
            UserError: It is no such tensor, or has no such score: it is shorter than
                ``least_frames``, smaller than its network can judge, or that gives NaN or infinity.
        """
        self.begin(prompt, video_id, fps)
        self.extend(video)
        self.end()

    def begin(
        self,
        prompt: str | None = None,
        video_id: str | None = None,
        fps: float | None = None,
    ) -> None:
        """Begin a video (or the next clip of one); see ``update``."""
        if self._open is not None:
            raise RuntimeError(f"{self.label}: begin() before end() of the video before")
        self._open = _keys(prompt, video_id)
        self._prompt = prompt
        self._reset_video()

    def extend(self, frames: Tensor) -> None:
        """Show the video's next frames, uint8 ``[T, 3, H, W]``.

        Raises:
            UserError: They are no such tensor, or of another size than the frames before.
        """
        if self._open is None:
            raise RuntimeError(f"{self.label}: extend() before begin()")
        check_frames(frames, self.label)
        size = tuple(frames.shape[-2:])
        if self._size is not None and self._size != size:
            raise UserError(
                f"{self.label}: a frame of {size[1]}x{size[0]} pixels follows frames of "
                f"{self._size[1]}x{self._size[0]}; a video's frames must be of one size"
            )
        self._size = size
        self._frames += len(frames)
        if len(frames) and not self._lost():
            try:
                terms = self._terms(frames).to("cpu", torch.float64).tolist()
            except NumericalError:
                terms = [math.nan]  # of which the end says why there is no score
            for term in terms:  # one by one: the sum does not depend on how the video is cut
                self._sum += term
            self._count += len(terms)
            self.series.push([self._from_mean(term) for term in terms])

    def end(self) -> float:
        """End the video and return its score.

        Raises:
            UserError: It has no such score, see ``update``; it leaves no trace.
        """
        if self._open is None:
            raise RuntimeError(f"{self.label}: end() before begin()")
        (video, prompt), self._open = self._open, None
        if self.refusal() is None:
            for term in self._last_terms():
                self._sum, self._count = self._sum + term, self._count + 1
        self._forget()
        if (refusal := self.refusal()) is not None:
            raise UserError(refusal)
        terms = Terms(self._sum, self._count)
        self._add(terms, video, prompt)
        self.terms = terms
        return self._from_mean(terms.total / terms.number)

    def restore(self, terms: Terms, prompt: str | None = None, video_id: str | None = None) -> None:
        """Add a video that was scored before, by what ``terms`` was when it had ended."""
        video, prompt_key = _keys(prompt, video_id)
        self._add(terms, video, prompt_key)

    def _add(self, terms: Terms, video: int, prompt: int) -> None:
        row = (terms.total, terms.number, video, prompt)
        for (name, dtype), value in zip(_ROW.items(), row, strict=True):
            getattr(self, name).append(torch.tensor([value], dtype=dtype, device=self.device))
        self._computed = None
        self._update_count = max(1, self._update_count)

    def refusal(self) -> str | None:
        """Return why the running video, as far as it is known, has no such score; None where it has one."""
        if self._frames < self.least_frames:
            return (
                f"{self.label}: the video has {counted(self._frames, 'frame')}; "
                f"it must have at least {self.least_frames}"
            )
        return self._lost()

    def _lost(self) -> str | None:
        """Return why the running video has no score whatever frames follow; None where it may have one."""
        height, width = self._size or (math.inf, math.inf)
        for network in self.networks().values():
            if min(height, width) < network.least_side:
                return (
                    f"{self.label}: frames of {width}x{height} pixels are too small for "
                    f"{network.provenance.network}, they must have {network.least_side} at least on both "
                    "sides: leave this score out, or score larger videos"
                )
        if not math.isfinite(self._sum):
            return (
                f"{self.label}: NaN or infinity came out of its network: compute it on another device, or "
                "fetch the weights anew"
            )
        return None

    def drop(self) -> None:
        """Drop the running video, if there is one; what ended before stays."""
        self._open = None
        self._forget()

    def reset(self) -> None:
        """Forget all videos."""
        super().reset()
        self._open = None
        self._reset_video()

    def _reset_video(self) -> None:
        self._size = None
        self._frames = self._count = 0
        self._sum = 0.0
        self.series = Series()
        self._forget()

    # Results

    def compute(self) -> Tensor:
        """Return the score of all videos, a float64 scalar; NaN without any."""
        mean = self.own_estimate().mean
        return torch.tensor(math.nan if mean is None else mean, dtype=torch.float64)

    def estimate(self, level: float = 0.95) -> Estimate:
        """Return the score with its standard error and interval, clustered by prompt.

        All ranks must call it, as ``compute``.

        Args:
            level: Of the interval, in (0, 1).
        """
        with self.sync_context():
            return self.own_estimate(level)

    def own_estimate(self, level: float = 0.95) -> Estimate:
        """Return the same over this process's own videos; the other ranks take no part.

        Args:
            level: Of the interval, in (0, 1).
        """
        sums, counts, videos, prompts = self._rows()
        scores = [self._from_mean(s / c) for s, c in zip(sums, counts, strict=True)]
        if self.aggregate == "clip":
            return estimate(scores, prompts, level)
        if self.aggregate == "video":
            by_video, prompt_of = self.per_video(), dict(zip(videos, prompts, strict=True))
            return estimate(list(by_video.values()), [prompt_of[v] for v in by_video], level)
        return estimate(scores, prompts, level, weights=counts)

    def per_video(self) -> dict[int, float]:
        """Return each video's score (the mean over its clips) by the hash of its id."""
        clips: dict[int, list[float]] = defaultdict(list)
        for total, count, video, _ in zip(*self._rows(), strict=True):
            clips[video].append(self._from_mean(total / count))
        return {video: math.fsum(found) / len(found) for video, found in clips.items()}

    def prompt_of(self) -> dict[int, int]:
        """Return the hash of each video's prompt by the hash of its id."""
        _, _, videos, prompts = self._rows()
        return dict(zip(videos, prompts, strict=True))

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        # a rank without videos takes part with empty rows of the right type
        for name, dtype in _ROW.items():
            if not len(getattr(self, name)):
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super()._sync_dist(dist_sync_fn, process_group)

    def _rows(self) -> tuple[list[float], list[int], list[int], list[int]]:
        states = (self.values, self.counts, self.videos, self.prompts)
        columns = [dim_zero_cat(s).tolist() if len(s) else [] for s in states]
        return columns[0], columns[1], columns[2], columns[3]

    @property
    def label(self) -> str:
        """The score's name; with the network's in brackets where it is not the original's."""
        labels = [network.label for network in self.networks().values() if network.label]
        return f"{self.name}[{','.join(labels)}]" if labels else self.name

    def provenance(self) -> dict[str, Any]:
        """Return how the score was made: networks, aggregation, number of videos."""
        found: dict[str, Provenance] = {r: n.provenance for r, n in self.networks().items()}
        return {
            "score": self.label,
            "networks": plain(found),
            "aggregate": self.aggregate,
            "videos": len(self.per_video()),
        }

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one or several values; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)

    def _identity(self) -> Tensor:
        """Return what tells this score from others in a collection."""
        described = f"{type(self).__name__} {self.label} {self.aggregate} {self.options()}"
        return torch.tensor(_key(described), dtype=torch.int64)

    def options(self) -> dict[str, Any]:
        """Return the settings that change values."""
        return {}


def _keys(prompt: str | None, video_id: str | None) -> tuple[int, int]:
    """Return the hashes of a video's id and of its prompt; without a prompt it is its own cluster."""
    video = _key(video_id if video_id is not None else uuid.uuid4().hex)
    return video, _key(prompt) if prompt is not None else video


def _key(text: str) -> int:
    """Return a 63-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
