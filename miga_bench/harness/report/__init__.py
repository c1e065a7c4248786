"""Reports of runs: tables beside the paper's, differences, plots, pictures; as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miga_bench.harness.report.request import ReportRequest


def write_report(
    runs: Sequence[Path],
    output: Path = Path("report"),
    prompts_shown: int = 2,
    baseline: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the report of some runs.

    Args:
        runs: Their folders.
        output: Folder to write.
        prompts_shown: Prompts with a contact sheet.
        baseline: The arm others are held against; None is each run's own.
        overwrite: Replace a report that exists.

    Returns:
        The paths, under ``html``, ``markdown`` and ``figures``, and the key numbers of each run.

    Raises:
        UserError: A folder is no run, no video of it is done, or the output exists.
    """
    request = ReportRequest(runs, output, prompts_shown, baseline, overwrite)
    request.check()
    from miga_bench.harness.report.report import report  # plots and videos: heavy

    return report(request)
