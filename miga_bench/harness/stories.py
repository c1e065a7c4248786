"""Suites of narratives by name, and how videos of their stories are scored: the same rules for all who ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import UserError
from miga_bench.prompts import STORIES

if TYPE_CHECKING:
    from miga_bench.metrics.narrlv import Slot, Story, StoryScore, Suite
    from miga_bench.metrics.narrlv.scorer import Collapse, Variant

READER = "reader"


@dataclass(frozen=True)
class StoryOptions:
    """Which stories videos tell, who judges them, and by which formulas.

    Attributes:
        narratives: ``tiny``, ``natural`` (ours), ``release`` (fetched), or a suite's folder or file.
        judge: ``reader`` (of the embedded world), the URL of an OpenAI-compatible server, or a folder or Hub
            name of Qwen2.5-VL.
        judge_model: The model's name on the server.
        quality: File of Q-Align's scores of the videos' first frames; None leaves their terms out.
        variant: ``code`` or ``paper``.
        collapse: How three numbers become one: ``mean``, ``fid``, ``cov`` or ``coh``.
        votes: How often each question is asked, at most 5; None is 5, of the reader, who does not draw, 1.
        device: Of a Qwen2.5-VL in this process: ``auto`` spreads it over all GPUs; or one device.
    """

    narratives: str = "tiny"
    judge: str = READER
    judge_model: str | None = None
    quality: Path | None = None
    variant: Variant = "code"
    collapse: Collapse = "mean"
    votes: int | None = None
    device: str = "auto"

    def check(self) -> None:
        """Refuse what can be refused before a file is opened.

        Raises:
            UserError: An option is wrong, or does not go with another.
        """
        from miga_bench.metrics.narrlv.scorer import VOTES, check_collapse, check_variant

        check_variant(self.variant)
        check_collapse(self.collapse)
        if self._is_server != bool(self.judge_model):
            raise UserError(
                f"judge is {self.judge}, judge_model {self.judge_model}: a server's URL and the model's name"
                " there go together, give both or neither"
            )
        if self.judge == READER and self.narratives in ("natural", "release"):
            raise UserError(f"narratives is {self.narratives}: {_FOR_EMBEDDED}")
        if self.votes is not None and not 1 <= self.votes <= VOTES:
            raise UserError(
                f"votes is {self.votes}: each question is asked at least once, and NarrLV counts {VOTES}"
                " answers at most"
            )
        if self.quality is not None and self.variant == "paper":
            raise UserError(
                f"quality is {self.quality}: the variant paper has no term for it, code does"
            )

    def open_suite(self) -> Suite:
        """Return the suite.

        Raises:
            UserError: It cannot be read, or asks what the judge cannot answer.
        """
        suite = open_suite(self.narratives)
        if self.judge == READER:
            from miga_bench.backbones.tiny.judge import understands

            asked = (q for story in suite.items for part in story.questions.values() for q in part)
            strange = next((question for question in asked if not understands(question)), None)
            if strange is not None:
                raise UserError(f"{suite.source} asks {strange!r}: {_FOR_EMBEDDED}")
        return suite

    @property
    def answers_each(self) -> int:
        """How many answers a question gets."""
        from miga_bench.metrics.narrlv.scorer import VOTES

        return self.votes or (1 if self.judge == READER else VOTES)

    @property
    def judge_has_weights(self) -> bool:
        """Whether the judge is a model that this process has to load."""
        return self.judge != READER and not self._is_server

    def open_judge(self) -> Any:
        """Return the judge.

        Raises:
            UserError: It cannot be loaded.
        """
        if self.judge == READER:
            from miga_bench.backbones.tiny.judge import ReaderJudge

            return ReaderJudge()
        if self._is_server:
            from miga_bench.metrics.narrlv import ServerJudge

            return ServerJudge(self.judge, str(self.judge_model))
        from miga_bench.metrics.narrlv.qwen import QwenJudge

        return QwenJudge(self.judge, device=self.device)

    def judged_by(self) -> dict[str, Any]:
        """Return what decides the judge's answers beside its name, without loading it.

        Of a server nobody can tell; the reader has nothing to tell until its rules are others than at first,
        so that videos that it judged are not judged again.

        Raises:
            UserError: There is no such model.
        """
        if self.judge == READER:
            from miga_bench.backbones.tiny.judge import changed_rules

            return changed_rules()
        if self._is_server:
            return {}
        from miga_bench.metrics.narrlv.qwen import provenance_by_files

        return provenance_by_files(self.judge)

    def check_device(self) -> None:
        """Refuse a device that the judge could not use, or that would be passed over.

        Raises:
            UserError: It is not there, or the judge runs elsewhere.
        """
        if self.device == "auto" or (self.judge == READER and self.device == "cpu"):
            return
        if not self.judge_has_weights:
            where = "on the CPU" if self.judge == READER else "behind its URL"
            raise UserError(
                f"device is {self.device}: the judge {self.judge} runs {where}, leave the device out"
            )
        from miga_bench.backbones.residence import pick_device

        pick_device(self.device)

    def score(self, story: Story, answers: Mapping[Slot, str], quality: float | None) -> StoryScore:
        """Return the scores of a story's video.

        Args:
            story: What it tells.
            answers: To all questions about it, as a file of answers has them.
            quality: Q-Align's score of its first frame, 1 to 5; None leaves the term out.

        Raises:
            UserError: An answer is missing.
        """
        from miga_bench.metrics.narrlv import answers_to, score_video

        answered = answers_to(story, answers, self.answers_each)
        return score_video(story, answered, quality=quality, variant=self.variant)

    @property
    def _is_server(self) -> bool:
        return self.judge.startswith(("http://", "https://"))


_FOR_EMBEDDED = (
    "the reader judges stories of the embedded world, give another judge: a server's URL with judge_model, or a"
    " folder or Hub name of Qwen2.5-VL"
)


def open_suite(narratives: str) -> Suite:
    """Return a suite by its name, folder or file.

    Raises:
        UserError: It cannot be read.
    """
    from miga_bench.metrics.narrlv import fetch_release, load_suite

    if narratives == "release":
        return load_suite(fetch_release())
    return load_suite(STORIES.get(narratives, Path(narratives)))
