"""What a user asks to have scored, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.harness.request import check_writable
from miga_bench.metrics.suites import check_dimensions

SUITES = ("tiny", "vbench", "vbench-long")


@dataclass(frozen=True)
class Plan:
    """What decides a video's values.

    Attributes:
        long: By clips, as VBench-Long.
        networks: ``tiny`` or ``vbench``.
        dimensions: What to score.
        development: With VBench-Long's clip-to-clip scores.
    """

    long: bool
    networks: str
    dimensions: tuple[str, ...]
    development: bool = True


@dataclass(frozen=True)
class ScoreRequest:
    """Videos to score, and how.

    Attributes:
        videos: Files and folders.
        suite: ``tiny`` or ``vbench``: whole videos; ``vbench-long``: clips and their fusion.
        networks: ``tiny`` or ``vbench``; None is what the suite's name says.
        dimensions: Names in ``DIMENSIONS``; None is the default.
        prompts: File of the videos' prompts; None looks for records beside the videos.
        output: The JSON to write; the picture lies beside it (.png), and while the work goes on
            the finished videos' results (.jsonl).
        fps: Frame rate to assume instead of what files say.
        aggregate: How videos become one number; None is each dimension's own rule.
        reading: Of VBench-Long: ``exact`` or ``reference``.
        development: VBench-Long's ``--dev_flag``.
        devices: Where to score; one process each. A device may be given several times.
        overwrite: Replace results that exist.
    """

    videos: Sequence[Path]
    suite: str = "tiny"
    networks: str | None = None
    dimensions: Sequence[str] | None = None
    prompts: Path | None = None
    output: Path = Path("scores.json")
    fps: float | None = None
    aggregate: str | None = None
    reading: str = "exact"
    development: bool = True
    devices: Sequence[str] = ("cpu",)
    overwrite: bool = False

    @property
    def picture(self) -> Path:
        """Where the plot goes."""
        return self.output.with_suffix(".png")

    @property
    def journal(self) -> Path:
        """Where finished videos' results are kept until all are done."""
        return self.output.with_suffix(".jsonl")

    @property
    def plan(self) -> Plan:
        """What decides a video's values, checked."""
        networks = self.networks or ("tiny" if self.suite == "tiny" else "vbench")
        dimensions = check_dimensions(self.dimensions, networks)
        return Plan(self.suite == "vbench-long", networks, dimensions, self.development)

    def check(self) -> None:
        """Refuse what can be refused before a file is opened.

        Raises:
            UserError: A name is unknown, a device is not there or the output cannot be written.
        """
        if self.suite not in SUITES:
            raise UserError(f"unknown suite {self.suite!r}: there are {', '.join(SUITES)}, narrlv")
        if self.suite == "tiny" and self.networks == "vbench":
            raise UserError(
                "--suite tiny is the embedded networks: with --networks vbench say vbench"
            )
        if self.suite == "vbench-long" and self.aggregate is not None:
            raise UserError(
                "--aggregate is not for vbench-long: its --reading says how it averages"
            )
        if self.suite != "vbench-long" and (self.reading != "exact" or not self.development):
            raise UserError(
                "--reading and --in-clip-only are for --suite vbench-long: leave them out"
            )
        if self.output.suffix != ".json":
            raise UserError(f"-o {self.output}: the scores are JSON, end its name in .json")
        # where a stopped command left its journal, the picture may be its own
        mine = (self.output,) if self.journal.exists() else (self.output, self.picture)
        for path in () if self.overwrite else mine:
            if path.exists():
                raise UserError(f"{path} exists: add --force to replace it, or choose another -o")
        check_writable(self.output.parent)
        for device in set(self.devices) - {"cpu"}:
            from miga_bench.backbones.residence import pick_device

            pick_device(device)
        self.plan  # noqa: B018 - checks the dimensions
