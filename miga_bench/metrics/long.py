"""VBench-Long on scores instead of files: cut a video into clips, map the fast score, fuse.

VBench-Long cuts a long video into clips of two seconds and scores each clip like a short video (of videos
for its own prompts, clips for overall consistency last ten; for anybody's, as here, all last two). Subject
and background consistency also have a fast branch: the same formula on the first frames of all clips,
with another network; a table maps its score to the scale of the in-clip scores, and the two are fused.
Source of every rule here: vbench2_beta_long of https://github.com/Vchitect/VBench (45e79ec, Apache-2.0).
Networks, pixels and files are the caller's. ``long_score`` lists what the two readings do differently.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from miga_bench.errors import UserError

Item = TypeVar("Item")
Reading = Literal["exact", "reference"]

_TABLES = {
    "subject_consistency": "subject_mapping_table.yaml",
    "background_consistency": "background_mapping_table.yaml",
}


def clip_length(fps: float, seconds: float = 2.0) -> int:
    """Return the frames of one clip: whole frames per second times whole seconds.

    Args:
        fps: Frames per second of the file; 23.976 counts as 23, as in the original.
        seconds: Length of a clip, a whole number. The original truncates: its configuration of 0.5 s
            becomes clips of no frames.

    Raises:
        UserError: If ``fps`` is below 1 or not finite, or ``seconds`` is not a whole number from 1.
    """
    if not (math.isfinite(fps) and fps >= 1):
        raise UserError(
            f"{fps} frames per second: VBench-Long counts whole frames per second, from 1; "
            "state the rate the video is played at"
        )
    if not (math.isfinite(seconds) and seconds >= 1 and seconds == int(seconds)):
        raise UserError(
            f"clips of {seconds} s: VBench-Long cuts clips of whole seconds, from 1; give 2 for its default"
        )
    return int(fps) * int(seconds)


class Clip(NamedTuple, Generic[Item]):
    """Frames ``start`` to ``stop - 1`` of a video, by whatever stands for a frame."""

    start: int
    stop: int
    items: tuple[Item, ...]


class ClipStream(Generic[Item]):
    """Cuts clips from a stream whose length nobody knows.

    All clips are equally long. What is left at the end becomes a clip of full length by reaching back
    into the one before; a video shorter than one clip is its own only clip.

    An item is what the scorer needs of a frame: its pixels, its features, or both. The newest ``length``
    items are kept, and that is all the memory it takes: every clip, the last one that reaches back
    included, is the newest ``length`` items at the time it ends, so frames need not be seen twice and
    networks that look at single frames need not run twice. 16 frames (2 s at 8 frames per second) of
    512 x 320 pixels are 7.9 MB as uint8, 48 frames of 832 x 480 are 57.5 MB; 16 feature vectors of 768
    float32 are 49 kB. The fast branch needs the pixels of each clip's first frame, and where the last
    clip starts is known only at the end; hence pixels of ``length`` frames are kept for it, or its
    network runs on every frame.

    An item that is a view holds the whole tensor it looks into: push clones.

    Args:
        length: Frames of a clip, from ``clip_length``.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen = 0
        self._newest: deque[Item] = deque(maxlen=length)

    def push(self, item: Item) -> Clip[Item] | None:
        """Take the next frame; return the clip that ends with it, if one does."""
        self._newest.append(item)
        self.seen += 1
        return self._clip() if self.seen % self.length == 0 else None

    def finish(self) -> Clip[Item] | None:
        """Return the clip of what is left at the end of the video, if anything is."""
        return self._clip() if self.seen % self.length else None

    def _clip(self) -> Clip[Item]:
        return Clip(self.seen - len(self._newest), self.seen, tuple(self._newest))


class Table(NamedTuple):
    """A piecewise linear function: ``keys`` ascending, one of ``values`` for each."""

    keys: tuple[float, ...]
    values: tuple[float, ...]


@cache
def mapping_table(dimension: str) -> Table | None:
    """Return VBench-Long's table for the fast score of a dimension; None where it has no fast branch.

    101 keys from 0 to 1, one value in 0..1 for each.

    Args:
        dimension: Name of a dimension as VBench writes it, such as ``subject_consistency``.
    """
    if dimension not in _TABLES:
        return None
    text = (Path(__file__).parent / "data" / _TABLES[dimension]).read_text(encoding="utf-8")
    rows = [line.split(":") for line in text.splitlines() if not line.startswith("#")]
    return Table(*zip(*((float(key), float(value)) for key, value in rows), strict=True))


def map_fast(raw: float, table: Table) -> float:
    """Map a raw fast score to the scale of in-clip scores; outside the table its end values hold.

    Args:
        raw: Fast score, 0..1. NaN stays NaN; the original takes it for 0 and drops the fast branch.
        table: From ``mapping_table``.
    """
    if math.isnan(raw):
        return raw
    right = bisect_left(table.keys, raw)
    if right == 0:
        return table.values[0]
    if right == len(table.keys):
        return table.values[-1]
    (x0, x1), (y0, y1) = table.keys[right - 1 : right + 1], table.values[right - 1 : right + 1]
    return y0 + (y1 - y0) * (raw - x0) / (x1 - x0)


def fuse(in_clip: float, mapped: float | None, development: bool = True) -> float:
    """Fuse the in-clip score with the mapped fast score.

    Args:
        in_clip: In-clip score, 0..1.
        mapped: From ``map_fast``. None, for a video of one clip, or 0 leaves the in-clip score alone.
        development: The original's ``--dev_flag``: half of each. Without it the original computes the
            fast branch and gives it no weight.
    """
    if mapped is None or mapped == 0.0:
        return in_clip
    in_weight, fast_weight = (0.5, 0.5) if development else (1.0, 0.0)
    return in_clip * in_weight + mapped * fast_weight


@dataclass(frozen=True)
class LongVideo:
    """What was measured on one video.

    Attributes:
        name: File name without ``.mp4``, after the folders that lead to it from where videos were looked for.
        clips: In-clip score of each clip, in order, one float per clip: 1,800 for an hour. None
            where the video has no such score.
        clip_frames: Frames of each of its clips.
        fast: Raw fast score; None for a video of one clip, and for dimensions without a fast branch.
        reason: Why the video has no such score; None where it has one.
    """

    name: str
    clips: tuple[float, ...]
    clip_frames: int
    fast: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LongVideoScore:
    """Score of one video, with its parts.

    Attributes:
        name: As in ``LongVideo``.
        in_clip: Mean over its clips.
        mapped: Mapped fast score that was fused in; None where there was none.
        score: Fused score.
    """

    name: str
    in_clip: float
    mapped: float | None
    score: float


@dataclass(frozen=True)
class LongScore:
    """Score of a suite: ``total`` over all videos, ``videos`` in the order given."""

    total: float
    videos: tuple[LongVideoScore, ...]


def long_score(
    videos: Sequence[LongVideo],
    dimension: str,
    reading: Reading = "exact",
    development: bool = True,
) -> LongScore:
    """Fuse and average one dimension of VBench-Long over a suite of videos.

    ``exact`` is what the method says, ``reference`` what the original's code computes. They agree when
    all videos are equally long, no name has an underscore, and clips survive encoding unchanged:

    - Average: ``exact`` takes the mean over videos of the mean over their clips. ``reference`` takes
      the mean over all clips, so that longer videos weigh more.
    - Names: ``reference`` looks the fast score up under the file name cut at its first underscore.
      Where that finds nothing, the score is the in-clip score alone; where it finds another video of
      the same folder, that video's fast score is fused. ``exact`` uses the video's own.
    - No fast score at all, every video being a single clip: ``reference`` weighs subject consistency
      by pairs of frames (background consistency not). ``exact`` stays with the mean over videos. The
      original without its development flag divides by zero here; both readings give in-clip scores.
    - Encoding: the original writes clips and first frames as lossy mp4 and scores what it reads back.
      This function sees scores only; for numbers like the original's, re-encode before scoring.
    - More than 1,000 clips: the original sorts first frames by file name, ``_1000`` before ``_101``.
      Neither reading does.

    The original divides the total of ``imaging_quality`` by 100 and leaves the videos' scores; here the
    scale of the scores is kept.

    Args:
        videos: Measurements, one entry per video that has such a score.
        dimension: Name of the dimension as VBench writes it.
        reading: ``exact`` or ``reference``.
        development: As for ``fuse``. Without it no fast scores are needed.

    Raises:
        UserError: If there is no video.
        ValueError: If fast scores are given where none belong, or lack where they are needed.
    """
    if not videos:
        raise UserError(
            f"no video to score for {dimension}: a mean needs one at least; check the folder"
        )
    table = mapping_table(dimension)
    for video in videos:
        _check(video, table is not None, development)
    fast = {video.name: video.fast for video in videos}
    scores, fused = [], []
    for video in videos:
        raw = fast.get(_cut(video.name)) if reading == "reference" else video.fast
        mapped = None if raw is None or table is None else map_fast(raw, table)
        in_clip = math.fsum(video.clips) / len(video.clips)
        scores.append(
            LongVideoScore(video.name, in_clip, mapped, fuse(in_clip, mapped, development))
        )
        fused += [fuse(clip, mapped, development) for clip in video.clips]
    if reading == "exact":
        total = math.fsum(score.score for score in scores) / len(scores)
    elif dimension == "subject_consistency" and all(len(video.clips) == 1 for video in videos):
        pairs = [video.clip_frames - 1 for video in videos]
        total = math.fsum(clip * n for clip, n in zip(fused, pairs, strict=True)) / sum(pairs)
    else:
        total = math.fsum(fused) / len(fused)
    return LongScore(total, tuple(scores))


def _cut(name: str) -> str:
    """Return a name as the original shortens it; it sees one folder, so folders stay apart."""
    folder, slash, own = name.rpartition("/")
    return folder + slash + own.split("_")[0]


def _check(video: LongVideo, has_fast_branch: bool, development: bool) -> None:
    """Raise ValueError unless the video has a fast score exactly where the original makes one."""
    belongs = has_fast_branch and len(video.clips) > 1
    if video.fast is not None and not belongs:
        raise ValueError(f"{video.name}: a fast score needs a fast branch and at least two clips")
    if video.fast is None and belongs and development:
        raise ValueError(f"{video.name}: its {len(video.clips)} clips need a fast score")
