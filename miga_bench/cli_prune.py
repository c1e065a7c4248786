"""The verb ``prune``: its options; shows or deletes the items that no run names."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json, say
from miga_bench.errors import counted

SUMMARY = "Show or delete the videos that no run names any more."

EXAMPLES = """\
examples:
  miga-bench prune runs               (how many there are, and what they take)
  miga-bench prune runs --delete

Runs below one root share their videos, which lie in ROOT/items. So what the folder of a removed run leaves
behind, or a run that was made anew with other settings, stays there until this command deletes it. A video
that any run below the root names is never touched, nor one that is being made, and where a run cannot be read
nothing is. Start no run below the root meanwhile."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument(
        "root",
        metavar="ROOT",
        type=Path,
        nargs="?",
        default=Path("runs"),
        help="folder above runs (runs)",
    )
    parser.add_argument("--delete", action="store_true", help="delete them, for good")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Look, delete if that is asked for, print what was found, and return the exit code.

    Raises:
        UserError: The root has no items, or a run below it cannot be read; nothing was deleted.
    """
    from miga_bench.harness.prune import Unnamed, delete, unnamed_items

    found = unnamed_items(args.root)
    size = sum(item.size for item in found)
    items = args.root / "items"
    told = f"{counted(len(found), 'item')} in {items} that no run names, {size / 2**20:.1f} MiB"
    gone: list[Unnamed] = []
    kept: dict[str, str] = {}
    if args.delete:
        from miga_bench.harness.bars import Bars

        with Bars(args.quiet) as bar:
            task = bar.add_task("deleting", total=len(found), frames="")
            gone, kept = delete(args.root, found, lambda: bar.advance(task))
        told += f": {len(gone)} deleted"
        if kept:
            key, why = next(iter(kept.items()))
            told += f", {len(kept)} kept; the first, {key}: {why}"
    elif found:
        told += ": --delete deletes them"
    if not args.quiet:
        say(told)
    print_json(
        {
            "items": [item.key for item in found],
            "bytes": size,
            "deleted": [item.key for item in gone],
            "freed": sum(item.size for item in gone),
            "kept": kept,
        }
    )
    return DONE
