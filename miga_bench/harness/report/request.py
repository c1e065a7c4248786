"""What to report: checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.harness.request import check_writable

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"


@dataclass(frozen=True)
class ReportRequest:
    """What to report.

    Attributes:
        runs: Folders of runs.
        output: Folder to write.
        prompts_shown: Prompts with a contact sheet.
        baseline: The arm others are held against; None is each run's own.
        overwrite: Replace a report that exists.
    """

    runs: Sequence[Path]
    output: Path = Path("report")
    prompts_shown: int = 2
    baseline: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be done, before anything is read.

        Raises:
            UserError: A number is out of range, a run is given twice, or the output exists.
        """
        if self.prompts_shown < 0:
            raise UserError(f"--prompts-shown {self.prompts_shown}: it must be 0 or more")
        seen = set()
        for run in self.runs:
            if run.resolve() in seen:
                raise UserError(f"{run} is given twice: leave one out")
            seen.add(run.resolve())
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"{self.output} is a file: -o names a folder")
        there = [name for name in (HTML, MARKDOWN, FIGURES) if (self.output / name).exists()]
        if there and not self.overwrite:
            raise UserError(
                f"{self.output} has {', '.join(there)}: choose another folder, or --force replaces it"
            )
        check_writable(self.output, "-o")
