"""The verb ``bench``: its options, and what it measures."""

from __future__ import annotations

import argparse

from miga_bench.cli_common import DONE, print_json
from miga_bench.harness.bench import PARTS, REPEATS

SUMMARY = "Measure speed, overhead, memory, waiting and start-up on this machine."

EXAMPLES = """\
examples:
  miga-bench bench                                  all parts: minutes
  miga-bench bench --only plain --only memory
  miga-bench bench --only methods --repeats 5

parts:
{parts}

Ratios are of one run, in turns. Most times are processor time of one thread, which other work on the machine
changes little; where wall time counts, the table says so, and the machine should be idle. The last line is
one JSON document with all numbers, the hardware and the machine's load before and after.""".format(
    parts="\n".join(f"  {name:<10} {what}" for name, what in PARTS.items())
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument(
        "--only",
        metavar="PART",
        choices=tuple(PARTS),
        action="append",
        help=f"only this part ({', '.join(PARTS)}); may be given several times",
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=REPEATS,
        help=f"rounds of what is timed in rounds ({REPEATS})",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the document, and return the exit code."""
    from miga_bench.harness.bench.suite import run_parts

    print_json(run_parts(args.only, args.repeats))
    return DONE
