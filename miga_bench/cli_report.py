"""The verb ``report``: its options, and the request they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json

SUMMARY = "Report runs: tables beside the paper's, differences with intervals, plots, pictures."

EXAMPLES = """\
examples:
  miga-bench report runs/tiny-wan-miga
  miga-bench report runs/table1-tiny-wan -o report
  miga-bench report runs/components-tiny-wan -o report --baseline none --prompts-shown 4
  miga-bench report runs/table1-wan2.1-1.3b runs/table1-videocrafter2 -o both --force

Writes report.html (one file, pictures inside, no network), report.md with its pictures in figures/, and for
each run its configuration, NAME.yaml, and its videos' numbers, NAME.csv. The same run gives the same report,
byte by byte."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders with a run.yaml")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("report"),
        help="folder (report)",
    )
    parser.add_argument(
        "--baseline", metavar="ARM", help="the arm that others are held against (the run's own)"
    )
    parser.add_argument(
        "--prompts-shown",
        metavar="N",
        type=int,
        default=2,
        help="prompts with a contact sheet; tables count all (2)",
    )
    parser.add_argument("--force", action="store_true", help="replace a report that exists")


def run(args: argparse.Namespace) -> int:
    """Write the report, print its paths and key numbers, and return the exit code."""
    from miga_bench.harness.report.request import ReportRequest

    request = ReportRequest(
        args.runs, args.output, args.prompts_shown, args.baseline, overwrite=args.force
    )
    request.check()
    from miga_bench.harness.report.report import write_report  # plots and videos: heavy

    print_json(write_report(request))
    return DONE
