"""Score narratives: ask a judge about videos, keep every answer, score what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import UserError
from miga_bench.harness.request import check_writable
from miga_bench.harness.stories import open_suite

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from miga_bench.metrics.narrlv import Story, Suite

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class NarrativeRequest:
    """Videos of narratives to score, and who judges them.

    Attributes:
        videos: The folder that holds ``SUITE_FILE/CLASS_INDEX_PROMPT.mp4``, as the original lays it out.
        narratives: ``tiny``, ``natural`` (ours), ``release`` (fetched), or a suite's folder or file.
        judge: ``reader`` (of the embedded world), the URL of an OpenAI-compatible server, or a folder
            or Hub name of Qwen2.5-VL. None is ``reader`` for ``tiny``.
        judge_model: The model's name on the server.
        tna: Numbers of narrative atoms; None is all.
        factors: Factors; None is all.
        quality: File of Q-Align's scores; None leaves their terms out.
        variant: ``code`` or ``paper``.
        collapse: How three numbers become one: ``mean``, ``fid``, ``cov`` or ``coh``.
        partial: Score the videos that are there, and say how many are not.
        output: The JSON to write; the answers lie beside it (.answers.jsonl).
        seed: Of the answers.
        device: Of a judge in this process.
        overwrite: Replace scores that exist; answers are kept in any case.
    """

    videos: Path
    narratives: str = "tiny"
    judge: str | None = None
    judge_model: str | None = None
    tna: Sequence[int] | None = None
    factors: Sequence[str] | None = None
    quality: Path | None = None
    variant: str = "code"
    collapse: str = "mean"
    partial: bool = False
    output: Path = Path("scores.json")
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False

    @property
    def answers(self) -> Path:
        """Where the answers go, as they come."""
        return self.output.with_suffix(".answers.jsonl")

    def check(self) -> None:
        """Refuse what can be refused before a file is opened.

        Raises:
            UserError: An option is wrong or the output cannot be written.
        """
        if not self.videos.is_dir():
            raise UserError(
                f"{self.videos} is no folder: narrlv needs the one that holds a folder of videos for each "
                "file of the suite"
            )
        if self.output.suffix != ".json":
            raise UserError(f"-o {self.output}: the scores are JSON, end its name in .json")
        if self.output.exists() and not self.overwrite:
            raise UserError(
                f"{self.output} exists: add --force to replace it, or choose another -o"
            )
        check_writable(self.output.parent)
        if self.judge is None and self.narratives != "tiny":
            raise UserError(
                "--judge is missing: give a server's URL with --judge-model NAME, or a folder or Hub name "
                "of Qwen2.5-VL"
            )
        if (self._is_server() or None) != (self.judge_model and True):
            raise UserError("--judge URL and --judge-model NAME go together: give both or neither")

    def _is_server(self) -> bool:
        return (self.judge or "").startswith(("http://", "https://"))

    def open_judge(self) -> Any:
        """Return the judge.

        Raises:
            UserError: It cannot be loaded.
        """
        if self.judge in (None, "reader"):
            from miga_bench.backbones.tiny.judge import ReaderJudge

            return ReaderJudge()
        if self._is_server():
            from miga_bench.metrics.narrlv import ServerJudge

            return ServerJudge(str(self.judge), str(self.judge_model))
        from miga_bench.metrics.narrlv.qwen import QwenJudge

        return QwenJudge(str(self.judge), device=self.device)


class FileVideo:
    """Single frames of a video file; only those that are asked for stay in memory.

    Args:
        path: The file.

    Raises:
        UserError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from miga_bench.harness.score_sources import find_videos
        from miga_bench.media import count_frames

        self.source = find_videos([path])[0]
        self._frames = count_frames(path)
        if not self._frames:
            raise UserError(f"{path} holds no frame: make it again")

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._frames

    def pick(self, indices: Sequence[int]) -> Tensor:
        """Return frames, uint8 ``[N, 3, H, W]``.

        Raises:
            UserError: The file breaks off before one of them.
        """
        import torch

        from miga_bench.harness.score_sources import TruncatedError

        wanted, found, first = set(indices), {}, 0
        try:
            for piece in self.source.pieces():
                for i in wanted.intersection(range(first, first + len(piece))):
                    found[i] = piece[i - first].clone()
                first += len(piece)
                if len(found) == len(wanted):
                    break
        except TruncatedError as error:
            raise UserError(f"{self.source.path} {error}: make it again") from error
        missing = wanted - set(found)
        if missing:
            raise UserError(f"{self.source.path} has no frame {min(missing)}: make it again")
        return torch.stack([found[i] for i in indices])


def score_narratives(
    request: NarrativeRequest, progress: Progress = lambda done, total, name: None
) -> dict[str, Any]:
    """Ask about videos and score the answers; the same command goes on where one was stopped.

    Args:
        request: What to score.
        progress: Called with answers there, answers in all, and the item asked about.

    Returns:
        The document that also lies in ``request.output``.

    Raises:
        UserError: Wrong input, or the judge cannot be reached; answers so far are kept.
    """
    from miga_bench.harness.files import write_json
    from miga_bench.harness.provenance import versions
    from miga_bench.metrics.narrlv import answers_to, ask, read_answers, score_video, summarize
    from miga_bench.metrics.narrlv.scorer import VOTES

    request.check()
    suite = _suite(request)
    suite, missing = _with_videos(suite, request)
    quality = _quality(request, suite)
    judge = request.open_judge()
    # the reader does not draw its answers: one is enough
    votes = 1 if request.judge in (None, "reader") else VOTES
    asked = ask(
        suite,
        judge,
        lambda item: FileVideo(item.video(request.videos)),
        request.answers,
        votes=votes,
        seed=request.seed,
    )
    for one in asked:
        progress(one.done, one.total, one.slot.item)
    provenance, answers = read_answers(request.answers)
    variant: Any = request.variant
    scores = [
        score_video(
            item,
            answers_to(item, answers, votes),
            quality=quality.get(item.key),
            variant=variant,
        )
        for item in suite.items
    ]
    collapse: Any = request.collapse
    summary = summarize(scores, collapse=collapse, variant=variant)
    document = {
        "suite": "narrlv",
        "narratives": suite.source,
        "scores": {factor: asdict(cell) for factor, cell in summary.factors.items()},
        "cells": {f"{factor} {tna}": asdict(c) for (factor, tna), c in summary.cells.items()},
        "videos": [asdict(score) for score in scores],
        "missing": missing,
        "notes": list(suite.notes),
        "provenance": {**summary.provenance, **provenance},
        "versions": versions(),
    }
    write_json(request.output, document)
    return document


def _suite(request: NarrativeRequest) -> Suite:
    suite = open_suite(request.narratives)
    if request.tna is None and request.factors is None:
        return suite
    return suite.select(request.factors, request.tna)


def _with_videos(suite: Suite, request: NarrativeRequest) -> tuple[Suite, list[str]]:
    """Return the suite without the items whose videos are missing, and those items' keys."""
    from dataclasses import replace

    there = [item.video(request.videos).is_file() for item in suite.items]
    missing: list[Story] = [i for i, here in zip(suite.items, there, strict=True) if not here]
    if not missing:
        return suite, []
    if not any(there) or not request.partial:
        raise UserError(
            f"{len(missing)} of {len(there)} videos are missing, the first is "
            f"{missing[0].video(request.videos)}: make them"
            + (", or score the rest with --partial" if any(there) else "")
        )
    kept = tuple(item for item, here in zip(suite.items, there, strict=True) if here)
    return replace(suite, items=kept), [item.key for item in missing]


def _quality(request: NarrativeRequest, suite: Suite) -> dict[str, float]:
    from miga_bench.metrics.narrlv import read_quality

    return {} if request.quality is None else read_quality(request.quality, suite)


def show(document: dict[str, Any]) -> None:
    """Print the table on stderr, where it does not mix with the JSON."""
    from rich.console import Console

    Console(stderr=True).print(table(document))


def table(document: dict[str, Any]) -> Table:
    """Return the scores by factor and number of atoms for the terminal."""
    from rich.table import Table

    made = document["provenance"]
    title = f"NarrLV, {made['variant']} variant, one number by {made['collapse']}, x 100"
    shown = Table("factor and atoms", "videos", "R_fid", "R_cov", "R_coh", "one", title=title)

    def add(name: str, cell: dict[str, Any], style: str = "") -> None:
        values = [cell[key] for key in ("fid", "cov", "coh", "collapsed")]
        texts = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        shown.add_row(name, str(cell["videos"]), *texts, style=style)

    for name, cell in document["cells"].items():
        add(name, cell)
    shown.add_section()
    for name, cell in document["scores"].items():
        add(name, cell, "bold")
    return shown
