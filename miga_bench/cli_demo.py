"""The verb ``demo``: its options."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.backbones import EMBEDDED
from miga_bench.cli_common import DONE, print_json

SUMMARY = (
    "All methods, same prompts and seeds, on an embedded model: a video side by side, a contact"
    " sheet and a table."
)
EXAMPLES = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("demo"), help="folder (demo)"
    )
    parser.add_argument("--prompts", metavar="N", type=int, default=3, help="how many prompts (3)")
    parser.add_argument("--frames", metavar="N", type=int, default=201, help="frames each (201)")
    parser.add_argument(
        "--arm",
        metavar="NAME",
        action="append",
        default=[],
        dest="arms",
        help="only this column, such as fifo; may be given several times",
    )
    parser.add_argument(
        "--backbone",
        choices=EMBEDDED,
        default="tiny-wan",
        help="which embedded model (tiny-wan)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> int:
    """Make the demo, print its numbers, and return the exit code."""
    from miga_bench.harness.demo import demo

    print_json(demo(args.output, args.prompts, args.frames, args.force, args.backbone, args.arms))
    return DONE
