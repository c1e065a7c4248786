"""What a report is made of, before it is HTML or Markdown. All text is plain: whoever writes it escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Prose; ``lead`` stands out, ``small`` is a remark."""

    text: str
    kind: Literal["", "lead", "small"] = ""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A table's cell: what counts, and under it, in lines, what belongs to it."""

    text: str
    detail: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Group:
    """Rows of a table under one label; the first cell of a row names it."""

    label: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table with a caption, a heading for each column, and rows in groups."""

    caption: str
    head: Sequence[str]
    groups: Sequence[Group]


@dataclass(frozen=True)
class Picture:
    """A picture and the file it becomes.

    Attributes:
        name: Of its file, with the suffix.
        data: The file's bytes.
        alt: What it shows, for those who do not see it.
        width: At which it is shown, in pixels.
    """

    name: str
    data: bytes = field(repr=False)
    alt: str
    width: int


@dataclass(frozen=True)
class Figures:
    """Pictures that belong together, side by side where there is room."""

    caption: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Code:
    """Text to copy, or a file's content."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Block]


Block: TypeAlias = "Heading | Paragraph | Bullets | Table | Figures | Code | Fold"


def pictures_of(blocks: Sequence[Block]) -> list[Picture]:
    """Return all pictures of a document."""
    out: list[Picture] = []
    for block in blocks:
        if isinstance(block, Figures):
            out += block.pictures
        elif isinstance(block, Fold):
            out += pictures_of(block.blocks)
    return out
