"""Hold scored videos against each other: what ``miga-bench score`` wrote of several folders, video by video.

Videos are matched by their names or, where folders name theirs differently, by their prompts. Statistics are
those of reports: differences of pairs, Student's t over prompts, and what is left at equal motion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os.path import splitext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import UserError, counted
from miga_bench.harness.report.comparisons import compare
from miga_bench.harness.report.measures import Measure, measure_of, measures_of, motion_of
from miga_bench.harness.results import Results, Row

if TYPE_CHECKING:
    from rich.table import Table

Document = dict[str, Any]

STORY = ("fid", "cov", "coh")
# What of a document says how its videos' values came about.
WAY = ("suite", "networks", "development", "narratives")
WAY_OF_STORIES = ("variant", "judge", "suite", "votes")


@dataclass(frozen=True)
class Scored:
    """A scores file.

    Attributes:
        name: The file's, without its ending.
        way: How its videos were scored.
        networks: Of each label, what its networks are; empty where there are none.
        rows: Its videos that have a score, by name.
    """

    name: str
    way: Mapping[str, Any]
    networks: Mapping[str, Any]
    rows: Mapping[str, Row]

    def by_prompt(self) -> dict[str, Row]:
        """Return a video for each prompt, whose scores are the means of the prompt's videos."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows.values():
            groups.setdefault(row.prompt, []).append(row)
        return {
            prompt: replace(rows[0], scores=_means(rows))
            for prompt, rows in groups.items()
            if prompt
        }


def compare_scores(paths: Sequence[Path]) -> Document:
    """Compare what others scored with what the first did.

    Args:
        paths: Of scores files, two or more.

    Returns:
        ``first``, ``suite``, and under ``against`` for every other file ``paired_by`` (``name`` or
        ``prompt``), ``pairs``, ``left_out`` (videos, or prompts, without a partner: of the first, of the other)
        and ``differences``: by label the other's mean over the pairs minus the first's, its interval, and a
        verdict, as reports have them.

    Raises:
        UserError: A file cannot be read, or two were not scored alike or have no video in common.
    """
    if len({path.resolve() for path in paths}) < 2 or len(set(paths)) < len(paths):
        raise UserError(
            f"{counted(len(set(paths)), 'scores file')} given, or one twice: give two or more, each once; the"
            " others are held against the first"
        )
    first, *others = (read_scored(path) for path in paths)
    return {
        "first": str(paths[0]),
        "suite": first.way["suite"],
        "against": {
            str(path): _against(first, other) for path, other in zip(paths[1:], others, strict=True)
        },
    }


def read_scored(path: Path) -> Scored:
    """Read a scores file.

    Raises:
        UserError: It is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        made = document.get("provenance", {})
        way = {name: document.get(name) for name in WAY} | {n: made.get(n) for n in WAY_OF_STORIES}
        way["suite"] = str(document["suite"])
        networks = {label: one.get("networks") for label, one in document["scores"].items()}
        rows = {}
        for video in document["videos"]:
            row = _row(path.stem, video)
            if any(value is not None for value in row.scores.values()):
                rows[row.prompt_id] = row
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{path} cannot be read ({reason}): check its name") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is no scores file: give what miga-bench score -o FILE.json has written"
        ) from None
    if not rows:
        raise UserError(f"{path} has no video with a score: score its videos again")
    return Scored(path.stem, way, networks, rows)


def _means(rows: Sequence[Row]) -> dict[str, float | None]:
    labels = dict.fromkeys(label for row in rows for label in row.scores)
    return {label: _mean([row.scores.get(label) for row in rows]) for label in labels}


def _row(arm: str, video: Mapping[str, Any]) -> Row:
    """Return a video of a scores file, or a story."""
    if "key" in video:
        name, prompt = str(video["key"]), ""
        scores = {f"narrlv/{one}": _number(video[one]) for one in STORY}
    else:
        name, prompt = str(video["video"]), str(video["prompt"] or "")
        scores = {str(label): _number(value) for label, value in video["scores"].items()}
    return Row(arm, name, prompt, 0, "", "done", Path(), scores=scores)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a score is a finite number")
    return number


def _against(first: Scored, other: Scored) -> Document:
    differing = [name for name in first.way if first.way[name] != other.way[name]]
    shared = [label for label in first.networks if label in other.networks]
    others = [one for one in shared if first.networks[one] != other.networks[one]]
    if differing or others or not shared:
        what = ", ".join(differing) or (f"networks of {others[0]}" if others else "dimensions")
        raise UserError(
            f"{first.name} and {other.name} were not scored alike ({what}): score both with the same options"
        )
    by, left, right = _matched(first, other)
    if not set(left) & set(right):
        raise UserError(
            f"{first.name} and {other.name} have no video in common, by name or by prompt: name them alike,"
            " or score both with --prompts"
        )
    pairs = [name for name in left if name in right]
    rows: list[Row] = []
    for name in pairs:
        prompt = left[name].prompt or right[name].prompt
        for arm, row in (("first", left[name]), ("other", right[name])):
            rows.append(replace(row, arm=arm, prompt_id=name, prompt=prompt))
    run = Results(Path(), "", {}, {}, {}, rows, {}, {})
    measures = measures_of([run])
    motion = motion_of(measures)
    return {
        "paired_by": by,
        "pairs": len(pairs),
        "left_out": [len(left) - len(pairs), len(right) - len(pairs)],
        "differences": {measure.label: _difference(run, measure, motion) for measure in measures},
    }


def _difference(run: Results, measure: Measure, motion: Measure | None) -> Document:
    found = asdict(compare(run, {"other": 1, "first": -1}, measure, motion))
    del found["measure"]
    both = [
        values
        for pair in zip(run.of("first"), run.of("other"), strict=True)
        if None not in (values := [row.scores.get(measure.label) for row in pair])
    ]
    first, other = (_mean(values) for values in zip(*both, strict=True)) if both else (None, None)
    return {"first": first, "other": other, **found}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _matched(first: Scored, other: Scored) -> tuple[str, Mapping[str, Row], Mapping[str, Row]]:
    """Return by what more pairs are found, and both sides' videos by it."""
    left, right = _by_name(first), _by_name(other)
    names = set(left) & set(right)
    if any(
        left[name].prompt and right[name].prompt not in ("", left[name].prompt) for name in names
    ):
        names = set()  # 0001.mp4 on either side, of another text
    prompts = first.by_prompt(), other.by_prompt()
    if len(names) >= len(set(prompts[0]) & set(prompts[1])):
        return "name", left, right
    return "prompt", *prompts


def _by_name(scored: Scored) -> dict[str, Row]:
    """Return videos by name, without the ending where that leaves all names different."""
    plain = {splitext(name)[0]: row for name, row in scored.rows.items()}
    return plain if len(plain) == len(scored.rows) else dict(scored.rows)


def tables(document: Document) -> Iterator[Table]:
    """Yield a table for the terminal for each file that the first is compared with."""
    from rich.markup import escape
    from rich.table import Table

    for path, found in document["against"].items():
        pairs = f"{counted(found['pairs'], 'pair')} by {found['paired_by']}"
        title = escape(f"{path} minus {document['first']}, {pairs}")
        shown = Table("score", "first", "other", "difference", "", "at equal motion", title=title)
        for label, one in found["differences"].items():
            measure = measure_of(label)
            equal = one["equal"]
            shown.add_row(
                escape(f"{measure.title}, {measure.unit}".rstrip(", ")),
                measure.number(one["first"]),
                measure.number(one["other"]),
                _interval(measure, one),
                one["verdict"],
                _at_equal_motion(measure, equal) if equal else "",
            )
        yield shown


def _at_equal_motion(measure: Measure, equal: Mapping[str, Any]) -> str:
    told: str = equal["verdict"]
    return told if equal["difference"] is None else f"{_interval(measure, equal)}: {told}"


def _interval(measure: Measure, found: Mapping[str, Any]) -> str:
    low, high = found["low"], found["high"]
    finer = measure.finer(low, high)
    text = measure.number(found["difference"], True, finer)
    if low is None or high is None:
        return text
    ends = (measure.number(end, True, finer) for end in (low, high))
    return f"{text} ({' to '.join(ends)})"
