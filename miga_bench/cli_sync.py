"""The verb ``sync``: its options; tells MLflow of runs that lie on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json
from miga_bench.errors import TrackingError, UserError

SUMMARY = "Tell MLflow of runs that lie on disk; what it knows already is not told twice."

EXAMPLES = """\
examples:
  miga-bench sync runs/tiny-wan-miga                              (into the file runs/mlflow.db)
  miga-bench sync runs/mine --uri http://localhost:5000
  miga-bench sync runs/a runs/b --uri postgresql+psycopg2://me@host/mlflow --experiment drift
  miga-bench sync runs/mine --no-videos                           (contact sheets only)

then look:
  mlflow ui --backend-store-uri sqlite:///runs/mlflow.db

A run is a parent in MLflow and each of its arms a child. Give the command again after more videos were made
or scored: arms with news are told anew in place of the old ones, tags of yours stay. Runs that were deleted
in MLflow come back. MLflow's ids are kept in RUN/tracking.json. The default of --uri is MLFLOW_TRACKING_URI
where that is set."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="folders that predict or experiment made"
    )
    parser.add_argument(
        "--uri",
        metavar="URI",
        help="http://HOST:PORT, sqlite:///FILE or another database (mlflow.db beside the run)",
    )
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        default="miga-bench",
        help="MLflow's name for a group of runs (miga-bench)",
    )
    parser.add_argument("--no-videos", action="store_true", help="leave the videos where they are")
    parser.add_argument(
        "--videos-mib",
        metavar="N",
        type=int,
        default=500,
        help="at most so many MiB of videos of each arm (500)",
    )


def run(args: argparse.Namespace) -> int:
    """Tell MLflow of the runs, one by one; print where they are, and return the exit code.

    Raises:
        UserError: A folder is no run, or MLflow cannot keep runs at the URI; nothing was told.
        TrackingError: MLflow refused, or could not be reached.
    """
    from miga_bench.harness.tracking.process import Target, TrackingProcess
    from miga_bench.harness.tracking.uri import shown, tracking_uri

    if args.videos_mib < 0:
        raise UserError(f"--videos-mib is {args.videos_mib}: it must be 0 or more")
    if not args.experiment.strip():
        raise UserError("--experiment is empty: give the group of runs a name")
    folders = [folder.resolve() for folder in args.runs]
    for folder in folders:
        if not (folder / "run.yaml").is_file():
            raise UserError(f"{folder} is no run: it has no run.yaml; runs lie in ROOT/NAME")
    uris = [tracking_uri(args.uri, folder.parent) for folder in folders]
    told = []
    for folder, uri in zip(folders, uris, strict=True):
        target = Target(folder, uri, args.experiment, not args.no_videos, args.videos_mib)
        word = TrackingProcess(target, follow=False).finish()
        if word["event"] == "failed":
            if word.get("wrong_input"):
                raise UserError(word["what"])
            raise TrackingError(f"{folder} could not be told to {shown(uri)}: {word['what']}")
        told.append({"run": str(folder), **{k: v for k, v in word.items() if k != "event"}})
    print_json({"synced": told})
    return DONE
