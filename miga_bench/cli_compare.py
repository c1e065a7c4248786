"""The verb ``compare``: its options, the table and the document it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json

SUMMARY = "Compare scored videos: differences on the same prompts, with intervals."

EXAMPLES = """\
examples:
  miga-bench score runs/table1-wan2.1-1.3b/videos/miga --prompts runs/table1-wan2.1-1.3b/prompts.json \\
      --suite vbench -o miga.json
  miga-bench score my-videos/ --prompts my-prompts.json --suite vbench -o mine.json
  miga-bench compare miga.json mine.json

Takes what miga-bench score wrote, of videos of any model. Videos are pairs if their names are alike, or else if
their prompts are. What the others score is held against the first: the mean of the differences, its 95 %
interval over prompts, whether it is more than chance, and whether it is so at equal motion. Without --prompts
names tell which videos are of one prompt (a cat-0.mp4, a cat-1.mp4); else each counts as one of its own."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument(
        "scores", metavar="SCORES", type=Path, nargs="+", help="files that score -o has written"
    )
    parser.add_argument("--quiet", action="store_true", help="no table")


def run(args: argparse.Namespace) -> int:
    """Compare, print tables and document, and return the exit code."""
    from miga_bench.harness.compare import compare_scores, tables

    document = compare_scores(args.scores)
    if not args.quiet:
        from rich.console import Console

        console = Console(stderr=True)
        console = console if console.is_terminal else Console(stderr=True, width=160)
        for table in tables(document):
            console.print(table)
    print_json(document)
    return DONE
