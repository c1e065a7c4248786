"""The verb ``experiment``: what its help says, and experiments by name or of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from miga_bench.cli_common import ended
from miga_bench.errors import UserError
from miga_bench.harness.shipped import experiments, places, shipped

SUMMARY = "Make an experiment: all arms on the same prompts and seeds, scored, logged and reported."

EXAMPLES = """\
examples:
  miga-bench experiment components                        (the paper's table 3 on the embedded tiny-wan)
  miga-bench experiment table1 --on wan2.1-1.3b           (public weights, all GPUs of this machine)
  miga-bench experiment zigzag --on tiny-videocrafter2 --data.limit 2 --data.seeds "[0]"
  miga-bench experiment --config mine.yaml
  miga-bench experiment table1 --print_config             (everything that can be set)

an experiment of one's own:
  model:
    backbone: tiny-wan
    method: miga
    settings: {guidance_frames: 4}
    arms: {fifo: {method: fifo}, anchored: {preset: anchored}}    # changes of the above, by name
    grid: {zigzag: [1, 3, 7], stage2_steps: [0, 5]}               # six more arms, zigzag-1.stage2_steps-0 ...
    metrics: [{class_path: SuiteScores}, {class_path: WorldScores}]
  data: {prompts: tiny-world, limit: 20, seeds: [0, 1], frames: 161}
  run: {name: mine, about: {title: What I asked myself, baseline: fifo}}

All options of predict can be given too (miga-bench predict --help-all shows them). The same command goes on
where it was stopped; videos that another run below the same root has made are not made again. A shipped
experiment's folder is runs/NAME-BACKBONE, with the report in report/; it is tracked in MLflow."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what help shows; all other options are predict's and are read by it."""
    # NAME is no positional: argparse would take the value of an option that only Lightning knows for it
    parser.usage = (
        "miga-bench experiment [NAME] [--on BACKBONE] [--config FILE] [options of predict]"
    )
    parser.description = f"{SUMMARY} NAME is a shipped one: {', '.join(experiments())}."
    parser.add_argument(
        "--on",
        metavar="BACKBONE",
        default=None,
        help=f"where a shipped one runs: {', '.join(places())} (tiny-wan)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="YAML of your own, laid over the shipped one if there is one; may be given several times",
    )


def experiment_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the experiment that comes before all options, None if there is none, and the options.

    Raises:
        UserError: There are two.
    """
    options = list(arguments)
    name = options.pop(0) if options and not options[0].startswith("-") else None
    if options and not options[0].startswith("-"):
        raise UserError(
            f"{name} and {options[0]} are named: an experiment at a time, and values stand behind options"
        )
    return name, options


def parts_of(
    name: str | None, on: str | None, files: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the configurations of a run, each to be laid over the ones before it.

    Args:
        name: The shipped experiment that comes first, if one is named.
        on: The backbone of that one, tiny-wan if None.
        files: What files of the user's own say.

    Raises:
        UserError: There is no such experiment on that backbone, or a backbone but no experiment.
    """
    if name is not None:
        return [shipped(name, on or "tiny-wan"), *files]
    if on is not None:
        raise UserError("--on is for shipped experiments: say model.backbone in --config")
    return [*files]


def run(args: argparse.Namespace) -> int:
    """Make the experiment, say how it ended, and return the exit code.

    Raises:
        UserError: Wrong input; nothing was made.
    """
    from miga_bench.harness.configurations import read
    from miga_bench.harness.experiment import experiment

    name, options = experiment_of(args.arguments)
    if name is None and not args.config:
        raise UserError(
            f"no experiment is named: give one ({', '.join(experiments())}), or --config FILE"
        )
    return ended(experiment(parts_of(name, args.on, map(read, args.config)), options))
