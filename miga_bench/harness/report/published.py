"""The numbers that the MIGA paper prints, by table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from miga_bench.errors import UserError

FILE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class PublishedRow:
    """A line of a published table.

    Attributes:
        backbone: The model.
        arm: The way the videos were made, by the name experiments give it.
        scores: By column, in the table's unit.
        at: Value of the table's axis; None where it has no axis.
        endless: Whether the method goes on for ever; None where the table does not say.
    """

    backbone: str
    arm: str
    scores: Mapping[str, float]
    at: float | None = None
    endless: bool | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        key: Its name here.
        source: The paper.
        number: Of the table in it; None where we do not know.
        title: What it shows.
        unit: ``percent``, ``seconds`` or ``MiB``.
        conditions: What a reader must know of how it was made.
        columns: In order.
        rows: In order.
        axis: The setting that the rows vary; None for a table of methods.
        frames: Length of the videos, by backbone.
        sizes: Height and width of the videos in pixels, by backbone.
        toolkit: What scored them, ``vbench-long`` or ``narrlv``; None for costs.
        prompts: Fewest prompts of VBench's that count as the table's.
        stories: Stories in each of NarrLV's cells.
    """

    key: str
    source: str
    number: int | None
    title: str
    unit: str
    conditions: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    axis: str | None = None
    frames: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    toolkit: str | None = None
    prompts: int = 0
    stories: int = 0

    @property
    def name(self) -> str:
        """Return the source and the table's number in it."""
        return f"{self.source}, Table {self.number}" if self.number else self.source

    def backbones(self) -> list[str]:
        """Return the models of the table, in order."""
        return list(dict.fromkeys(row.backbone for row in self.rows))

    def of(self, backbone: str) -> dict[str, PublishedRow]:
        """Return a model's rows by arm."""
        return {row.arm: row for row in self.rows if row.backbone == backbone}


def published_table(key: str) -> PublishedTable:
    """Return a table by its name.

    Raises:
        UserError: There is no such table.
    """
    tables = published_tables()
    if key not in tables:
        raise UserError(f"unknown published table {key!r}: there are {', '.join(tables)}")
    return tables[key]


@functools.cache
def published_tables() -> dict[str, PublishedTable]:
    """Return all tables by name."""
    document = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    out, sizes = {}, {name: tuple(size) for name, size in document["sizes"].items()}
    for key, table in document["tables"].items():
        columns = tuple(table.pop("columns"))
        rows = tuple(
            PublishedRow(scores=dict(zip(columns, row.pop("values"), strict=True)), **row)
            for row in table.pop("rows")
        )
        table |= {"columns": columns, "rows": rows, "sizes": sizes}
        out[key] = PublishedTable(key, document["source"], **table)
    return out
