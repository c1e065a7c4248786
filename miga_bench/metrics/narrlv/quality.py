"""The quality term of NarrLV's released scores: Q-Align on a video's first frame, 1 (bad) to 5 (excellent).

Q-Align (arXiv 2312.17090, model q-future/one-align) is not a dependency: its code is fetched with its weights
and runs with old versions only. Its values are read from a file, the one of the original's
``answer_gen_aes.py`` included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError
from miga_bench.metrics.narrlv.suite import Suite


def read_quality(path: str | Path, suite: Suite | None = None) -> dict[str, float]:
    """Read stored values.

    Args:
        path: JSON lines ``{"item": KEY, "quality": 4.2}``; or one JSON object from key to value; or to
            the record that the original writes. A key is an item's key or, where no two items of
            the suite share it, the name of its video.
        suite: Whose items they are; without one names are what they are, of whatever videos.

    Returns:
        1 to 5 by item's key; items without a value are left out.

    Raises:
        UserError: The file cannot be read, names an item that the suite lacks, or has a value out of range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read qualities from {path} ({error}): check the name given as quality"
        ) from None
    records = dict(_records(path, text))
    keys = _keys(suite) if suite is not None else {name: name for name in records}
    found: dict[str, float] = {}
    for name, value in records.items():
        if suite is not None and name not in keys:
            raise UserError(f"{path} rates {name!r}, which is no item of {suite.source}; remove it")
        found[keys[name]] = _checked(_value(value), f"{path}: quality of {name!r}")
    return found


def check_rated(path: str | Path, rated: Mapping[str, float], videos: Mapping[str, str]) -> None:
    """Refuse a file that lacks a video: with the term and without it scores are two kinds of numbers.

    Args:
        path: The file.
        rated: What was read of it.
        videos: Of each video that is scored its key there, and what to call it.

    Raises:
        UserError: One is not rated; names the first.
    """
    missing = [name for key, name in videos.items() if key not in rated]
    if missing:
        others = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{path} has no quality of {missing[0]}{others}: rate the first frame of each video, or give no"
            " quality"
        )


def _keys(suite: Suite) -> dict[str, str]:
    """Story's key by everything that a file may call it."""
    names = [item.name for item in suite.items]
    keys = {item.name: item.key for item in suite.items if names.count(item.name) == 1}
    return keys | {item.key: item.key for item in suite.items}


def _records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and not {"item", "quality"} <= set(whole):
        yield from whole.items()
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            yield record["item"], record["quality"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path} line {number} is no quality; a line must be "
                '{"item": KEY, "quality": 1 to 5}'
            ) from None


def _value(value: Any) -> float:
    """The number itself, or where the original's record keeps it."""
    try:
        if isinstance(value, dict):
            value = value["qalign_res"]["answer"][0]
        return float(value)
    except (KeyError, IndexError, TypeError, ValueError):
        return float("nan")


def _checked(value: float, what: str) -> float:
    if not 1 <= value <= 5:
        raise UserError(f"{what} is {value}; Q-Align's scores are 1 to 5")
    return value
