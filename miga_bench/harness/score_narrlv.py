"""Score narratives: ask a judge about videos, keep every answer, score what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import UserError
from miga_bench.harness.request import check_writable
from miga_bench.harness.stories import StoryOptions

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
        stories: Which stories, who judges them, and by which formulas. A quality that is given is given of
            every video, by the item's key.
        tna: Numbers of narrative atoms; None is all.
        factors: Factors; None is all.
        partial: Score the videos that are there, and say how many are not.
        output: The JSON to write; the answers lie beside it (.answers.jsonl).
        seed: Of the answers.
        overwrite: Replace scores that exist; answers are kept in any case, and serve the videos that they
            are about.
    """

    videos: Path
    stories: StoryOptions = StoryOptions()  # noqa: RUF009 - it is frozen
    tna: Sequence[int] | None = None
    factors: Sequence[str] | None = None
    partial: bool = False
    output: Path = Path("scores.json")
    seed: int = 0
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
        self.stories.check()
        self.stories.check_device()


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

    Videos are known by their content: what was answered about others is asked anew.

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
    from miga_bench.harness.score_sources import find_videos
    from miga_bench.metrics.narrlv import ask, read_answers, summarize

    request.check()
    stories = request.stories
    suite, missing, quality = _material(request)
    files = {item.key: item.video(request.videos) for item in suite.items}
    contents = {key: find_videos([file])[0].digest() for key, file in files.items()}
    judge = stories.open_judge()
    asked = ask(
        suite,
        judge,
        lambda item: FileVideo(files[item.key]),
        request.answers,
        votes=stories.answers_each,
        seed=request.seed,
        contents=contents,
    )
    for one in asked:
        progress(one.done, one.total, one.slot.item)
    provenance, answers = read_answers(request.answers, contents)
    scores = [stories.score(item, answers, quality.get(item.key)) for item in suite.items]
    summary = summarize(scores, collapse=stories.collapse, variant=stories.variant)
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


def _material(request: NarrativeRequest) -> tuple[Suite, list[str], dict[str, float]]:
    """Return the stories to score, the keys of those without a video, and the videos' qualities."""
    from miga_bench.metrics.narrlv import check_rated, read_quality

    suite = request.stories.open_suite()
    if request.tna is not None or request.factors is not None:
        suite = suite.select(request.factors, request.tna)
    file = request.stories.quality
    quality = {} if file is None else read_quality(file, suite)
    suite, missing = _with_videos(suite, request)
    if file is not None:
        check_rated(file, quality, {item.key: item.key for item in suite.items})
    return suite, missing, quality


def _with_videos(suite: Suite, request: NarrativeRequest) -> tuple[Suite, list[str]]:
    """Return the suite without the items whose videos are missing, and those items' keys."""
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
