"""A document as one HTML file that needs nothing else: pictures inside, no script, no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from miga_bench.harness.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Figures,
    Fold,
    Heading,
    Paragraph,
    Picture,
    Table,
)

STYLE = Path(__file__).parent / "report.css"
# what the browser is told to load: pictures from the page itself, nothing else
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FULL_WIDTH = 500  # pixels: wider pictures scroll on a phone instead of shrinking
_CLASS = ' class="words"'
_NUMBER = re.compile(r"([-+]?[0-9][0-9.,]*( %| \([0-9]+\)| / [0-9]+)?|-|not given)?")


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return the page.

    Args:
        blocks: The document.
        title: Of the window.
    """
    anchors = _anchors(blocks)
    parts = [_block(block, anchors) for block in blocks]
    style = STYLE.read_text(encoding="utf-8")
    chapters = [block for block in blocks if isinstance(block, Heading) and block.level in (2, 3)]
    if any(block.level == 2 for block in chapters[1:]):  # several runs: their names are enough
        chapters = [block for block in chapters if block.level == 2]
    items = "".join(
        f'<li><a href="#{anchors[id(block)]}">{escape(block.text)}</a></li>' for block in chapters
    )
    head, *rest = parts
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">To the content</a>\n'
        f'{head}\n<nav aria-label="Contents"><ul>{items}</ul></nav>\n<main id="content">\n'
        + "\n".join(rest)
        + "\n</main>\n</body>\n</html>\n"
    )


def _anchors(blocks: Sequence[Block]) -> dict[int, str]:
    """Return an id for each heading, by the heading's identity; equal texts get numbers."""
    seen: dict[str, int] = {}
    out = {}
    for block in blocks:
        if isinstance(block, Heading):
            word = re.sub(r"[^a-z0-9]+", "-", block.text.lower()).strip("-") or "part"
            seen[word] = seen.get(word, 0) + 1
            out[id(block)] = word if seen[word] == 1 else f"{word}-{seen[word]}"
    return out


def _block(block: Block, anchors: dict[int, str]) -> str:
    match block:
        case Heading():
            anchor = anchors.get(id(block), "")
            return f'<h{block.level} id="{anchor}">{escape(block.text)}</h{block.level}>'
        case Paragraph():
            kind = f' class="{block.kind}"' if block.kind else ""
            return f"<p{kind}>{escape(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>"
        case Code():
            return f'<pre tabindex="0">{escape(block.text)}</pre>'
        case Fold():
            inner = "\n".join(_block(inside, anchors) for inside in block.blocks)
            return f"<details><summary>{escape(block.summary)}</summary>\n{inner}\n</details>"
        case Figures():
            return _figures(block)
        case Table():
            return _table(block)


def _figures(block: Figures) -> str:
    pictures = "\n".join(map(_picture, block.pictures))
    caption = f"<figcaption>{escape(block.caption)}</figcaption>\n" if block.caption else ""
    return f'<figure>\n{caption}<div class="pictures">\n{pictures}\n</div>\n</figure>'


def _picture(picture: Picture) -> str:
    kind = "png" if picture.name.endswith(".png") else "jpeg"
    data = base64.b64encode(picture.data).decode("ascii")
    image = (
        f'<img src="data:image/{kind};base64,{data}" alt="{escape(picture.alt)}"'
        f' width="{picture.width}">'
    )
    if picture.width <= FULL_WIDTH:
        return image
    label = escape(picture.alt)
    return f'<div class="sheet" tabindex="0" role="region" aria-label="{label}">{image}</div>'


def _table(block: Table) -> str:
    # numbers stand to the right, and columns with words in them to the left
    words = [
        any(not _NUMBER.fullmatch(row[at].text) for group in block.groups for row in group.rows)
        for at in range(len(block.head))
    ]
    head = "".join(
        f'<th scope="col"{_CLASS * word}>{_lines(text)}</th>'
        for text, word in zip(block.head, words, strict=True)
    )
    body = ""
    for group in block.groups:
        body += "<tbody>"
        if group.label:
            body += (
                f'<tr><th class="group" colspan="{len(block.head)}" scope="rowgroup">'
                f"<span>{escape(group.label)}</span></th></tr>"
            )
        for row in group.rows:
            first, *rest = row
            body += f'<tr><th scope="row">{_content(first)}</th>'
            body += "".join(map(_cell, rest, words[1:])) + "</tr>\n"
        body += "</tbody>"
    label = escape(block.caption)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<caption><span>{label}</span></caption><thead><tr>{head}</tr></thead>{body}"
        "</table></div>"
    )


def _lines(text: str) -> str:
    """Return a heading; what follows a comma is its unit, on a line of its own."""
    name, comma, unit = text.partition(", ")
    return escape(name) + (f"<small>{escape(unit)}</small>" if comma else "")


def _cell(cell: Cell, words: bool) -> str:
    classes: list[str] = [cell.tone] if cell.tone else []
    if words:
        classes.append("words")
    told = f' class="{" ".join(classes)}"' if classes else ""
    return f"<td{told}>{_content(cell)}</td>"


def _content(cell: Cell) -> str:
    lines = cell.detail.splitlines()
    return escape(cell.text) + "".join(f"<small>{escape(line)}</small>" for line in lines)
