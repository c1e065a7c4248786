"""The verb ``predict``: what its help says, and configurations by name or file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from miga_bench.cli_common import ended
from miga_bench.errors import UserError, near
from miga_bench.harness.shipped import run_of, runs

SUMMARY = "Make a run: many videos, on any number of processes, resumable by the same command."

EXAMPLES = """\
examples:
  miga-bench predict --config tiny-wan-miga
  miga-bench predict --config tiny-wan-miga --run.name mine --model.settings.zigzag 3 --data.limit 2
  miga-bench predict --config my.yaml --config gpu.yaml          (the later one wins)
  miga-bench predict --config my.yaml --trainer.devices 2 --trainer.strategy ddp
  torchrun --nproc-per-node 8 -m miga_bench predict --config my.yaml --trainer.devices 8 \\
      --trainer.strategy ddp --run.window_parallel 4            (four GPUs make each video together)
  miga-bench predict --config tiny-wan-miga --print_config > my.yaml   (all that can be set, to begin with)

a configuration:
  model: {backbone: tiny-wan, method: miga, preset: tiny, settings: {zigzag: 3}}
  data: {prompts: prompts.txt, seeds: [0, 1], frames: 201}
  trainer: {accelerator: auto, devices: 1, precision: bf16-true}    # of a GPU; 32-true of a CPU
  run: {root: runs, name: my-run, fail_on_error: true, window_parallel: 1}
  tracking: {enabled: true}                # MLflow in runs/mlflow.db; uri: http://HOST:PORT for a server

Every value can be given as an option too: --data.frames 81. Videos lie in ROOT/items, shared by all runs
below ROOT; a run's own folder says which are its. The same command goes on where it was stopped; other
values under the same name are refused."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what help shows; all other options are Lightning's and are read by it."""
    parser.add_argument(
        "--config",
        metavar="FILE|NAME",
        action="append",
        default=[],
        help=f"YAML, or one of: {', '.join(runs())}; may be given several times",
    )
    parser.add_argument(
        "--help-all",
        action="store_true",
        help="show all options of model, data, trainer, run and tracking",
    )


def run(args: argparse.Namespace) -> int:
    """Make the run, say how it ended, and return the exit code."""
    from miga_bench.harness.predict import predict

    parts = [configuration(config) for config in args.config]
    return ended(predict(arguments(parts, args.arguments, args.help_all)))


def arguments(
    parts: Sequence[Mapping[str, Any]], others: Sequence[str], everything: bool
) -> list[str]:
    """Return configurations and options as Lightning's command line takes them.

    Args:
        parts: Configurations, each laid over the ones before it.
        others: Options as typed.
        everything: Whether to show all options instead.
    """
    from miga_bench.harness.configurations import as_option, laid_over

    given = as_option(laid_over(parts)) if parts else []
    return [*given, *others, *(["--help"] if everything else [])]


def configuration(config: str) -> Mapping[str, Any]:
    """Return what the file says that a user names, or that a shipped configuration's name stands for.

    Raises:
        UserError: There is neither.
    """
    from miga_bench.harness.configurations import read

    if not os.path.exists(config):  # unlike Path's, of names too long for a file, too
        if config in runs():
            return run_of(config)
        if not config.endswith((".yaml", ".yml", ".json")) and os.sep not in config:
            known = near(config, runs(), word="there are")
            raise UserError(f"no configuration {config!r}: {known}, or give a YAML file")
    return read(config)
