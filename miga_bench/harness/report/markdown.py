"""A document as Markdown with its pictures in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from miga_bench.harness.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Figures,
    Fold,
    Heading,
    Paragraph,
    Table,
)

_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")
_LEADING = re.compile(r"^([-+>]|\d+[.)])(?=\s)")


def to_markdown(blocks: Sequence[Block], figures: str) -> str:
    """Return the page.

    Args:
        blocks: The document.
        figures: The folder of the pictures, as seen from the page.
    """
    return "\n\n".join(_block(block, figures) for block in blocks) + "\n"


def escaped(text: str) -> str:
    """Return text so that Markdown shows it as it is, on one line, in tables too."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LEADING.sub(r"\\\1", _SPECIAL.sub(r"\\\1", plain))


def _block(block: Block, figures: str) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escaped(block.text)}"
        case Paragraph():
            return escaped(block.text)
        case Bullets():
            return "\n".join(f"* {escaped(item)}" for item in block.items)
        case Code():
            # a fence longer than any run of backticks inside
            longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}{block.language}\n{block.text.rstrip()}\n{fence}"
        case Fold():
            inner = "\n\n".join(_block(inside, figures) for inside in block.blocks)
            summary = escaped(block.summary)
            return f"<details><summary>{summary}</summary>\n\n{inner}\n\n</details>"
        case Figures():
            pictures = "\n".join(f"![{escaped(p.alt)}]({figures}/{p.name})" for p in block.pictures)
            return f"{escaped(block.caption)}\n\n{pictures}" if block.caption else pictures
        case Table():
            return _table(block)


def _table(block: Table) -> str:
    width = len(block.head)
    lines = [_line(map(escaped, block.head)), "|" + " --- |" * width]
    for group in block.groups:
        if group.label:
            lines.append(_line([f"**{escaped(group.label)}**", *[""] * (width - 1)]))
        lines += [_line(map(_cell, row)) for row in group.rows]
    return f"{escaped(block.caption)}\n\n" + "\n".join(lines)


def _line(cells: Sequence[str] | map[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.tone in ("good", "bad"):
        text = f"**{text}**"
    return f"{text} ({escaped('; '.join(cell.detail.splitlines()))})" if cell.detail else text
