"""The verb ``list``: its options, and what it shows."""

from __future__ import annotations

import argparse

from miga_bench.cli_common import DONE, read_or_not
from miga_bench.errors import UserError

SUMMARY = "Show the methods, backbones or presets there are."
EXAMPLES = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument("what", choices=("methods", "backbones", "presets"))
    parser.add_argument("--markdown", action="store_true", help="methods as README shows them")


def run(args: argparse.Namespace) -> int:
    """Show them, and return the exit code.

    Raises:
        UserError: Markdown is wanted of something else than methods.
    """
    if args.markdown and args.what != "methods":
        raise UserError(f"--markdown is for methods, not {args.what}: leave it out")
    from miga_bench.harness.listing import show

    with read_or_not():
        show(args.what, args.markdown)
    return DONE
