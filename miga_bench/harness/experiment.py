"""An experiment: a run of several arms, made and scored as any run, then logged and reported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miga_bench.errors import Notice, UserError
from miga_bench.harness.configurations import as_option, laid_over
from miga_bench.harness.predict import predict

# what an experiment has that a run need not have
DEFAULTS: Mapping[str, Any] = {"tracking": {"enabled": True}}


def experiment(parts: Sequence[Mapping[str, Any]], options: Sequence[str]) -> dict[str, Any] | None:
    """Make an experiment, or what is missing of it, and write its report.

    Args:
        parts: Configurations, each laid over the ones before it.
        options: As typed, for Lightning's command line; they win.

    Returns:
        What ``status.json`` holds, and where the report is; None on ranks other than 0.

    Raises:
        UserError: Wrong input; nothing was made.
    """
    whole = laid_over([DEFAULTS, *parts])
    model = whole.get("model") or {}
    if not (model.get("arms") or model.get("grid")) and not any(
        option.startswith(("--model.arms", "--model.grid")) for option in options
    ):
        raise UserError(
            "this is no experiment: it has neither model.arms nor model.grid; see"
            " miga-bench experiment --help, or make it with miga-bench predict"
        )
    status = predict([*as_option(whole), *options], "experiment")
    if status is None or not status["done"]:
        return status
    if status["status"] == "stopped":  # by somebody who may not wait for a report
        warnings.warn(
            "no report is written of a run that was stopped: the same command goes on, or miga-bench report"
            f" {status['run']} tells of what is there",
            Notice,
            stacklevel=2,
        )
        return {**status, "report": None}
    try:
        return {**status, "report": _report(Path(status["run"]))}
    except OSError as error:  # what was made is told all the same
        warnings.warn(
            f"the report cannot be written ({error.strerror}): make room, then the same command writes it",
            Notice,
            stacklevel=2,
        )
        ended = "failed" if status["status"] == "done" else status["status"]
        return {**status, "status": ended, "report": None}


def _report(folder: Path) -> str:
    from miga_bench.harness.report.report import write_report
    from miga_bench.harness.report.request import ReportRequest

    return str(write_report(ReportRequest([folder], folder / "report", overwrite=True))["html"])
