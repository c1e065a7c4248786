"""What scores the videos of a run: each scorer reads a finished file and says numbers, by label.

A scorer's ``file`` is named after all that decides its numbers, so that they lie beside the video for every
run that asks for the same, and a changed scorer scores anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from miga_bench.errors import UserError
from miga_bench.harness.items import Item

if TYPE_CHECKING:
    from miga_bench.backbones.base import Backbone


@dataclass
class Found:
    """A video's scores.

    Attributes:
        scores: By label; None where there is a reason instead.
        reasons: Why a score is None, by label.
        series: By label, the score over the video: first frame, last frame and mean of each bin. Of VBench-Long
            the bins are its clips.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    series: dict[str, list[list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What reports say of a score that is not one of ours.

    Attributes:
        title: For people.
        meaning: What it tells, in one phrase.
        unit: Of the printed number.
        factor: Tables print the score times this.
        digits: Behind the point.
        better: Which way is better.
    """

    title: str
    meaning: str = ""
    unit: str = ""
    factor: float = 1
    digits: int = 2
    better: Literal["higher", "lower"] = "higher"


class ItemScorer(ABC):
    """Scores finished videos one by one.

    Attributes:
        name: Begins its file's name.
    """

    name: str

    def use(self, backbone: Backbone) -> None:  # noqa: B027 - most need not know
        """Hear which backbone made the videos, and where networks may run."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return all that decides its numbers, as plain values."""

    def labels(self) -> frozenset[str]:
        """Return the labels of its numbers, as far as they are known before a video is; after ``use``."""
        return frozenset()

    def told(self) -> Mapping[str, Told]:
        """Return what reports say of its numbers, by label.

        Of a label that nobody tells of they say that it is a share between 0 and 1, of which more is better.
        """
        return {}

    def narrowed(self, dimensions: Sequence[str]) -> ItemScorer | None:
        """Return what scores a video by these of VBench's dimensions; None if nothing does."""
        return self

    @property
    def file(self) -> str:
        """Name of the file of its scores beside a video."""
        told = json.dumps(self.identity(), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.json"

    @abstractmethod
    def score(self, video: Path, item: Item) -> Found:
        """Score a video.

        Args:
            video: The file, whole.
            item: What it was to be.

        Raises:
            UserError: Something is missing that the scorer needs.
        """

    def scored(self, video: Path) -> None:  # noqa: B027 - most keep nothing
        """Hear that a video's scores are on disk: what was kept for another try may go."""


def narrowed(scorers: Sequence[ItemScorer], dimensions: Sequence[str]) -> list[ItemScorer]:
    """Return what scores the videos of a prompt that is for these of VBench's dimensions; empty is all."""
    if not dimensions:
        return list(scorers)
    return [own for scorer in scorers if (own := scorer.narrowed(dimensions)) is not None]


class SuiteScores(ItemScorer):
    """VBench's dimensions of a video, by the embedded networks or by its own; see ``miga-bench score``.

    A video whose prompt is for some dimensions, as VBench's are, is scored by those alone.

    Args:
        suite: ``tiny`` or ``vbench``: whole videos; ``vbench-long``: clips and their fusion.
        dimensions: Names that ``miga-bench score --help`` shows; by default the four of the overall score
            and the dynamic degree.
        networks: ``tiny`` or ``vbench``; by default what the suite's name says.
        development: VBench-Long's clip-to-clip scores.

    Raises:
        UserError: A name is unknown.
    """

    name = "suite"

    def __init__(
        self,
        suite: str = "tiny",
        dimensions: list[str] | None = None,
        networks: str | None = None,
        development: bool = True,
    ) -> None:
        from miga_bench.harness.score_request import SUITES, ScoreRequest

        if suite not in SUITES:
            raise UserError(f"metrics: unknown suite {suite!r}: there are {', '.join(SUITES)}")
        if suite == "tiny" and networks == "vbench":
            raise UserError(
                f"metrics: suite {suite} is the embedded networks: with networks vbench say suite vbench"
            )
        request = ScoreRequest((), suite, networks, dimensions, development=development)
        self.plan, self._device = request.plan, "cpu"
        self._scores: list[Any] = []
        self._fast: dict[str, Any] = {}

    def use(self, backbone: Backbone) -> None:
        """Score where the videos are made; what is missing is said now, before work is done."""
        from miga_bench.harness.score import clip_encoders
        from miga_bench.metrics.suites import make_scores, scoring_device

        self._device = scoring_device(backbone.device)
        self._scores = make_scores(self.plan.dimensions, self.plan.networks, self._device)
        self._fast = clip_encoders(self.plan, self._device)

    def identity(self) -> dict[str, Any]:
        """Return the plan, and the networks with their weights' hashes."""
        from miga_bench.harness.score import networks_of

        networks = networks_of(self._scores, self._fast)
        # since then whole frame rates of clips, and no number of frames too small for a network
        changed = self.plan.long or self.plan.networks == "vbench"
        version = {"version": 3} if changed else {}
        return {"scorer": self.name, "plan": vars(self.plan), "networks": networks, **version}

    def narrowed(self, dimensions: Sequence[str]) -> SuiteScores | None:
        """Return the same with those of its dimensions alone, which is another plan and another file."""
        names = tuple(name for name in self.plan.dimensions if name in dimensions)
        if not names:
            return None
        own = copy(self)
        own.plan = replace(self.plan, dimensions=names)
        own._scores = [score for score in self._scores if score.name in names]
        own._fast = {name: encoder for name, encoder in self._fast.items() if name in names}
        return own

    def labels(self) -> frozenset[str]:
        """Return the dimensions' labels."""
        return frozenset(score.label for score in self._scores)

    def score(self, video: Path, item: Item) -> Found:
        """Score a video's dimensions."""
        from miga_bench.harness.score import score_video
        from miga_bench.harness.score_sources import find_videos
        from miga_bench.harness.score_summary import in_frames, summary

        (source,) = find_videos([video])
        source = replace(source, prompt=" / ".join(item.wanted), changing=len(item.wanted) > 1)
        row = score_video(source, self.plan, self._device, self._scores)
        if row["reason"]:
            raise UserError(row["reason"])
        labels = {score.name: score.label for score in self._scores}
        row |= {"video": source.name, "prompt": source.prompt}
        (shown,) = summary([row], self.plan, self._scores)["videos"]
        reasons = shown["reason"] or {}
        return Found(
            shown["scores"],
            {labels[name]: reason for name, reason in reasons.items()},
            {
                labels[name]: in_frames(bins, row["frames"])
                for name, bins in shown["series"].items()
            },
        )


class WorldScores(ItemScorer):
    """What the embedded world's reader sees: drift from the opening clip, motion, and what was asked.

    For videos of the embedded models only. Of a story the first caption counts as asked.
    """

    name = "world"
    VERSION = 1

    def __init__(self) -> None:
        self._opening: int | None = None

    def use(self, backbone: Backbone) -> None:
        """Hold frames against a clip of the backbone's own length."""
        self._opening = backbone.frames_of(backbone.window)

    def identity(self) -> dict[str, Any]:
        """Return the version and the length of the opening."""
        return {"scorer": self.name, "version": self.VERSION, "opening": self._opening}

    def labels(self) -> frozenset[str]:
        """Return what all of them begin with."""
        return frozenset(["world/"])

    def score(self, video: Path, item: Item) -> Found:
        """Read every frame once, and keep a few numbers of each; pictures only of the opening."""
        from miga_bench.backbones.tiny.drift import DriftMeter
        from miga_bench.backbones.tiny.grammar import parse_caption
        from miga_bench.harness.score_sources import TruncatedError, find_videos
        from miga_bench.media import count_frames

        try:
            asked = parse_caption(item.prompts[0].text)
        except UserError:
            asked = None  # a sentence of the user's own
        # used without a backbone, the opening is the first quarter
        meter = DriftMeter(asked, self._opening or max(1, count_frames(video) // 4))
        (source,) = find_videos([video])
        try:
            for frames in source.pieces():
                if frames.shape[1:] != (3, 64, 64):
                    size = "x".join(map(str, frames.shape[2:]))
                    raise UserError(
                        f"WorldScores reads the embedded models' 64x64 frames, not {size}: leave it out of"
                        " model.metrics"
                    )
                meter.extend(frames.float() / 255)
        except TruncatedError as error:
            raise UserError(f"{video} {error}: make it again") from error
        drift, curves = meter.end()
        found = drift.as_dict()
        scores = {n: v for n, v in found.items() if isinstance(v, float) or v is None}
        scores.pop("direction", None)
        return Found(
            {f"world/{name}": value for name, value in scores.items()},
            {f"world/{n}": "nothing to measure" for n, value in scores.items() if value is None},
            {f"world/{n}": bins for n, bins in curves.items()},
        )


class StoryScores(ItemScorer):
    """NarrLV's scores of a video whose prompt is a story of a suite; others have none.

    Args:
        narratives: ``tiny``, ``natural``, ``release``, or a suite's folder or file.
        judge: ``reader`` (of the embedded world), the URL of an OpenAI-compatible server, or a folder or Hub
            name of Qwen2.5-VL.
        judge_model: The model's name on the server.
        variant: ``code`` or ``paper``.
        collapse: How three numbers become one: ``mean``, ``fid``, ``cov`` or ``coh``.
        votes: How often each question is asked, at most 5; by default 5, of the reader 1.
        device: Of a Qwen2.5-VL in this process: ``auto`` spreads it over all GPUs; or one device. Each
            process of a run loads its own beside the model that makes videos: a large one is better
            asked behind a URL.
        quality: File of Q-Align's scores of the videos' first frames, 1 to 5, in a form that ``miga-bench
            score --quality`` takes, each under the name of the video's folder below ``items/``. The variant
            ``code`` has a term for it, left out without a file; with one, a video that is not in it has no
            scores. Another file scores anew.

    Raises:
        UserError: The suite or the file cannot be read, or a name is unknown.
    """

    name = "story"

    def __init__(
        self,
        narratives: str = "tiny",
        judge: str = "reader",
        judge_model: str | None = None,
        variant: str = "code",
        collapse: str = "mean",
        votes: int | None = None,
        device: str = "auto",
        quality: str | None = None,
    ) -> None:
        from miga_bench.harness.stories import StoryOptions
        from miga_bench.metrics.narrlv.quality import read_quality

        formulas: Any = {"variant": variant, "collapse": collapse}
        self._options = StoryOptions(
            narratives,
            judge,
            judge_model,
            None if quality is None else Path(quality),
            **formulas,
            votes=votes,
            device=device,
        )
        self._options.check()
        self._quality = {} if quality is None else read_quality(quality)
        self._suite = self._options.open_suite()
        self._stories: Mapping[Sequence[str], Any] = {
            texts: story
            for story in self._suite.items
            for texts in ((story.prompt,), tuple(story.segments))
        }
        self._judge: Any = None
        self._judged_by: dict[str, Any] | None = None
        self._refusal: str | None = None

    def use(self, backbone: Backbone) -> None:
        """Say now whether the judge can be had; one with weights is loaded when a video asks for it."""
        self._options.check_device()
        if not self._options.judge_has_weights:
            self._judge = self._open_judge()
            return
        from miga_bench.metrics.narrlv.qwen import check_model

        check_model(self._options.judge, self._options.device)

    def identity(self) -> dict[str, Any]:
        """Return the suite, the judge with its files' hash, and the formulas."""
        if self._judged_by is None:  # a large judge's files are not read again for every video
            self._judged_by = self._options.judged_by()
        return {
            "scorer": self.name,
            "suite": self._options.narratives,
            "stories": self._suite.digest,
            "judge": self._options.judge,
            "judge_model": self._options.judge_model,
            **({"judged_by": self._judged_by} if self._judged_by else {}),
            "votes": self._options.answers_each,
            "variant": self._options.variant,
            "collapse": self._options.collapse,
            **self._rated(),
        }

    def _rated(self) -> dict[str, str]:
        """Return the hash of what the videos' qualities are; nothing without, as before there were any."""
        if self._options.quality is None:
            return {}
        told = json.dumps(self._quality, sort_keys=True)
        return {"quality": hashlib.sha256(told.encode()).hexdigest()}

    def labels(self) -> frozenset[str]:
        """Return what all of them begin with."""
        return frozenset(["narrlv/"])

    def score(self, video: Path, item: Item) -> Found:
        """Ask the judge about the video; a judge that is down is asked for the rest by the same command."""
        from miga_bench.harness.score_narrlv import FileVideo
        from miga_bench.metrics.narrlv import (
            ask,
            check_rated,
            collapse_to,
            provenance_of,
            read_answers,
        )

        story = self._stories.get(item.wanted)
        if story is None:
            return Found()
        if self._options.quality is not None:
            called = f"items/{item.key}, which tells {story.key}"
            check_rated(self._options.quality, self._quality, {item.key: called})
        if self._judge is None:
            self._judge = self._open_judge()
        one: Any = replace(self._suite, items=(story,))
        judge: Any = self._judge
        votes, collapse = self._options.answers_each, self._options.collapse
        answers = self._answers(video, provenance_of(one, judge, votes))
        for _ in ask(one, judge, lambda _: FileVideo(video), answers, votes=votes):
            pass
        _, told = read_answers(answers)
        found = self._options.score(story, told, self._quality.get(item.key))
        cell = f"tna{story.tna}_{SHORT[story.factor]}"
        one_number = collapse_to(found.fid, found.cov, found.coh, collapse, story.tna)
        values = {f"narrlv/{n}": getattr(found, n) for n in ("fid", "cov", "coh")}
        scores = {**values, f"narrlv/{cell}": one_number}
        missing = {f"narrlv/{name}": reason for name, reason in found.reasons.items()}
        if one_number is None:
            parts = found.reasons if collapse == "mean" else {collapse: found.reasons[collapse]}
            name, reason = next(iter(parts.items()))
            missing[f"narrlv/{cell}"] = f"{name} is missing: {reason}"
        return Found(
            {n: None if v is None or math.isnan(v) else v for n, v in scores.items()}, missing
        )

    def _open_judge(self) -> Any:
        """Return the judge; one that could not be loaded is not read again for every video.

        Raises:
            UserError: It cannot be loaded; after the first time as one that was reported.
        """
        if self._refusal is not None:
            again = UserError(f"the judge could not be loaded before: {self._refusal}")
            again.reported = True
            raise again
        try:
            return self._options.open_judge()
        except Exception as error:  # memory that runs out, too
            self._refusal = str(error)
            raise

    def scored(self, video: Path) -> None:
        """Remove the answers that were kept for another try."""
        for answers in self._kept(video):
            answers.unlink()

    def _kept(self, video: Path) -> Iterator[Path]:
        return (video.parent / "scores").glob(f"{Path(self.file).stem}-*.answers.jsonl")

    def _answers(self, video: Path, provenance: Mapping[str, Any]) -> Path:
        """Return where the answers to a video are kept until it is scored: each may have been paid for.

        Those to another file, or of a judge that answers otherwise, have other names; damaged ones are removed.
        """
        from miga_bench.metrics.narrlv import read_answers

        with open(video, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        told = hashlib.sha256(json.dumps([content, provenance], sort_keys=True).encode())
        name = f"{Path(self.file).stem}-{told.hexdigest()[:8]}.answers.jsonl"
        path = video.parent / "scores" / name
        if path.exists():
            try:
                read_answers(path)
            except UserError:
                path.unlink()
        return path


# factor -> its column in the paper's table
SHORT = {"scene_attribute": "s_att", "target_attribute": "t_att", "target_action": "t_act"}
