"""The verb ``validate``: what its help says, and a line for each step."""

from __future__ import annotations

import argparse
import sys

from miga_bench import cli_predict
from miga_bench.cli_common import DONE, WRONG_INPUT, print_json
from miga_bench.cli_experiment import experiment_of, parts_of
from miga_bench.errors import in_print
from miga_bench.harness.shipped import experiments

SUMMARY = "Look at a run before it is made: would it start, and what would it take?"

EXAMPLES = """\
examples:
  miga-bench validate --config tiny-wan-miga
  miga-bench validate --config my.yaml --config gpu.yaml --data.frames 1200
  miga-bench validate --config my.yaml --no-probe        (no seconds, but no waiting)
  miga-bench validate table1 --on wan2.1-1.3b            (a shipped experiment)

Takes what predict and experiment take, makes no video, fetches nothing and writes nothing below the run's
root. Each step is one line on stderr: ok, note, or problem. The seconds come from a few denoiser calls on the
chosen device; searches, writing and scoring are not in them. The last line of stdout is one JSON document.

exit codes: 0 the run would start, 2 it would not"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what help shows; all other options are predict's and are read by it."""
    # NAME is no positional: argparse would take the value of an option that only Lightning knows for it
    parser.usage = "miga-bench validate [NAME] [--on BACKBONE] [--config FILE] [options of predict]"
    parser.description = f"{SUMMARY} NAME is a shipped experiment: {', '.join(experiments())}."
    parser.add_argument(
        "--on",
        metavar="BACKBONE",
        help="where a shipped experiment runs (tiny-wan)",
    )
    cli_predict.add_options(parser)
    parser.add_argument(
        "--no-probe", action="store_true", help="do not time denoiser calls: no seconds"
    )


def run(args: argparse.Namespace) -> int:
    """Look, say what each step found, print the document, and return the exit code."""
    from miga_bench.harness.validate import Step, validate

    def say(step: Step) -> None:
        print(
            f"{step.number:2d} {step.name:13} {step.status:7} {in_print(step.text)}",
            file=sys.stderr,
            flush=True,
        )

    document = validate(_arguments(args), not args.no_probe, say)
    print_json(document)
    return DONE if document["starts"] else WRONG_INPUT


def _arguments(args: argparse.Namespace) -> list[str]:
    """Return the options as Lightning's command line takes them."""
    from miga_bench.harness.configurations import read

    name, options = experiment_of(args.arguments)
    reading = cli_predict.configuration if name is None else read
    parts = parts_of(name, args.on, map(reading, args.config))
    return cli_predict.arguments(parts, options, args.help_all)
