"""A run's videos as a table: who made what of which prompt, what it cost, what it scored."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from miga_bench.harness.results import Row

_OF_ROW: dict[str, Callable[[Row], Any]] = {
    "arm": lambda row: row.arm,
    "prompt_id": lambda row: row.prompt_id,
    "prompt": lambda row: row.prompt,
    "seed": lambda row: row.seed,
    "key": lambda row: row.key,
    "status": lambda row: row.status,
    "frames": lambda row: row.frames,
    "nfe": lambda row: row.cost.get("nfe"),
    "seconds": lambda row: row.cost.get("total_seconds"),
}


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Return the labels of the videos' scores, in order of the alphabet."""
    return sorted({label for row in rows for label in row.scores})


def video_table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return ``columns`` and ``data``, a line for each video.

    Scores are as stored, without a table's factor of 100; None where there is none, and why under ``reasons``.
    """
    labels = labels_of(rows)
    data = [
        [
            *(get(row) for get in _OF_ROW.values()),
            *(row.scores.get(label) for label in labels),
            "; ".join([row.error or "", *row.reasons.values()]).strip("; "),
        ]
        for row in rows
    ]
    return {"columns": [*_OF_ROW, *labels, "reasons"], "data": data}


def to_csv(table: dict[str, list[Any]]) -> str:
    """Return a table as CSV, its columns in the first line; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table["columns"])
    writer.writerows(table["data"])
    return text.getvalue()
