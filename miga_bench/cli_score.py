"""The verb ``score``: its options, the requests they make, and how far it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miga_bench.cli_common import DONE, FAILED, print_json, say
from miga_bench.errors import UserError

Document = dict[str, Any]

# what only one kind of suite looks at, as argparse calls it, and as the user does
OF_NARRATIVES = (
    "narratives",
    "judge",
    "judge_model",
    "tna",
    "factor",
    "quality",
    "variant",
    "collapse",
    "partial",
)
OF_SCORES = ("networks", "dimensions", "aggregate", "reading", "in_clip_only", "prompts", "fps")
NAMES = {"dimensions": "dimension"}

SUMMARY = "Score videos."

EXAMPLES = """\
examples:
  miga-bench score out.mp4
  miga-bench score videos/ --suite vbench --device cuda -o vbench.json
  miga-bench score videos/ --suite vbench-long --prompts prompts.json
  miga-bench score demo/videos --dimension subject_consistency --dimension dynamic_degree
  miga-bench score stories/ --suite narrlv --narratives release --judge http://localhost:8000/v1 \\
      --judge-model Qwen/Qwen2.5-VL-72B-Instruct

Works on any folder of videos (mp4, mov, mkv, webm, avi, gif, folders of numbered PNGs or JPEGs), from any
model. The suite tiny needs no download and carries its own label; vbench and vbench-long use the public
networks. A command that was stopped goes on where it was when it is given again."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument(
        "videos", metavar="VIDEO", type=Path, nargs="+", help="files, or folders that hold some"
    )
    what = parser.add_argument_group("scores")
    what.add_argument(
        "--suite", metavar="NAME", default="tiny", help="tiny, vbench, vbench-long, narrlv (tiny)"
    )
    what.add_argument(
        "--networks", metavar="NAME", help="tiny (embedded) or vbench (public); the suite's own"
    )
    what.add_argument(
        "--dimension",
        metavar="NAME",
        action="append",
        dest="dimensions",
        help="only this dimension: subject_consistency, background_consistency, motion_smoothness,"
        " temporal_flickering, dynamic_degree (these five if none is given) or, of the public networks alone,"
        " aesthetic_quality, imaging_quality, overall_consistency; may be given several times",
    )
    what.add_argument(
        "--aggregate",
        metavar="RULE",
        choices=("video", "frame", "clip"),
        help="video, frame or clip: how videos become one number (the original's rule)",
    )
    what.add_argument(
        "--reading",
        choices=("exact", "reference"),
        help="of vbench-long: what the method says, or what the original's code does (exact)",
    )
    what.add_argument(
        "--in-clip-only",
        action="store_true",
        help="of vbench-long: give clip-to-clip consistency no weight, as without --dev_flag",
    )
    videos = parser.add_argument_group("videos")
    videos.add_argument("--prompts", metavar="FILE", type=Path, help="JSON: video name to prompt")
    videos.add_argument("--fps", metavar="N", type=float, help="frame rate, instead of the files'")
    videos.add_argument(
        "--device",
        metavar="NAME",
        action="append",
        dest="devices",
        help="cpu, cuda:0; several times: that many processes (cpu)",
    )
    _add_narratives(parser.add_argument_group("narratives (--suite narrlv)"))
    files = parser.add_argument_group("files")
    files.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("scores.json"), help="scores.json"
    )
    files.add_argument("--force", action="store_true", help="replace files that exist")
    files.add_argument("--quiet", action="store_true", help="no progress")


def _add_narratives(group: Any) -> None:
    group.add_argument(
        "--narratives",
        metavar="NAME|PATH",
        help="tiny or natural (ours), release (fetched), or a suite's folder (tiny)",
    )
    group.add_argument(
        "--judge",
        metavar="NAME",
        help="reader (the default, for stories of the embedded world), an OpenAI-compatible server's URL, or a"
        " Qwen2.5-VL folder or Hub name",
    )
    group.add_argument("--judge-model", metavar="NAME", help="the model's name on the server")
    group.add_argument("--tna", metavar="N", type=int, action="append", help="only N atoms")
    group.add_argument("--factor", metavar="NAME", action="append", help="only this factor")
    group.add_argument("--quality", metavar="FILE", type=Path, help="Q-Align scores, JSON lines")
    group.add_argument("--variant", choices=("code", "paper"), help="whose formulas (code)")
    group.add_argument(
        "--collapse",
        choices=("mean", "fid", "cov", "coh"),
        help="how three numbers become one (mean)",
    )
    group.add_argument(
        "--partial",
        action="store_true",
        help="score the videos that are there, if some are missing",
    )


def _narratives(args: argparse.Namespace) -> tuple[Document, list[str]]:
    """Ask a judge of each story; return what ``_scores`` does."""
    from miga_bench.harness.score_narrlv import NarrativeRequest, score_narratives, show
    from miga_bench.harness.stories import READER, StoryOptions

    if len(args.videos) != 1:
        raise UserError(
            f"{len(args.videos)} paths are given: --suite narrlv takes one folder of videos"
        )
    devices = args.devices or ["auto"]
    if len(devices) > 1:
        raise UserError(
            f"--device is given {len(devices)} times: --suite narrlv asks one judge on one device"
        )
    stories = StoryOptions(
        narratives=args.narratives or "tiny",
        judge=args.judge or READER,
        judge_model=args.judge_model,
        quality=args.quality,
        variant=args.variant or "code",
        collapse=args.collapse or "mean",
        device=devices[0],
    )
    request = NarrativeRequest(
        videos=args.videos[0],
        stories=stories,
        tna=args.tna,
        factors=args.factor,
        partial=args.partial,
        output=args.output,
        overwrite=args.force,
    )
    request.check()
    with _progress("asking", args.quiet) as progress:
        document = score_narratives(request, progress)
    if not args.quiet:
        show(document)
    return document, []


def _refuse_others(args: argparse.Namespace) -> None:
    """Refuse options that the suite would pass over.

    Raises:
        UserError: One is given.
    """
    of_narratives = args.suite == "narrlv"
    for name in OF_SCORES if of_narratives else OF_NARRATIVES:
        if not any(getattr(args, name) is unset for unset in (None, False)):
            option = "--" + NAMES.get(name, name.replace("_", "-"))
            if of_narratives:
                raise UserError(f"{option} is not for --suite narrlv: leave it out")
            raise UserError(
                f"{option} is for --suite narrlv, not {args.suite}: leave it out, or name that suite"
            )


def run(args: argparse.Namespace) -> int:
    """Score, say which videos have no score at all and why, print the document, return the exit code.

    Raises:
        UserError: Wrong input; nothing was scored.
    """
    _refuse_others(args)
    document, unscored = (_narratives if args.suite == "narrlv" else _scores)(args)
    for reason in unscored:
        say(reason)
    print_json(document)
    return FAILED if unscored else DONE


def _scores(args: argparse.Namespace) -> tuple[Document, list[str]]:
    """Score by a suite of networks; return the document, and why videos have no score at all."""
    from miga_bench.harness.score_request import ScoreRequest

    request = ScoreRequest(
        videos=args.videos,
        suite=args.suite,
        networks=args.networks,
        dimensions=args.dimensions,
        prompts=args.prompts,
        output=args.output,
        fps=args.fps,
        aggregate=args.aggregate,
        reading=args.reading or "exact",
        development=not args.in_clip_only,
        devices=args.devices or ["cpu"],
        overwrite=args.force,
    )
    request.check()
    from miga_bench.harness.score import score
    from miga_bench.harness.score_summary import show, unscored, without_some

    with _progress("scoring", args.quiet) as progress:
        document = score(request, progress)
    if not args.quiet:
        show(document)
    for line in without_some(document):
        say(line)
    return document, unscored(document)


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show done and total on stderr, with the time that is left."""
    from miga_bench.harness.bars import Bars, PlainLines

    with Bars(quiet) as bar:
        lines = PlainLines(not quiet and bar.disable)
        task = bar.add_task(what, total=None, frames="")
        before: list[int] = []  # done by a command that was stopped

        def show(done: int, total: int, name: str) -> None:
            before[:] = before or [done]
            lines.begin()
            bar.update(
                task,
                completed=done,
                total=total,
                frames=f"{done}/{total}",
                description=f"{what} {name}".strip(),
            )
            lines.tell(f"{what}, {done} of {total}", done - before[0], total - before[0])

        yield show
