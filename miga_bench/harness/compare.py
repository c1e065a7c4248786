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
from miga_bench.harness.clusters import OVER, clusters
from miga_bench.harness.report.comparisons import compare
from miga_bench.harness.report.measures import Measure, measure_of, measures_of, motion_of
from miga_bench.harness.results import Results, Row

if TYPE_CHECKING:
    from rich.table import Table

Document = dict[str, Any]

STORY = ("fid", "cov", "coh")
STORIES = "narrlv"  # the suite
# What of a document says how its videos' values came about; of stories, what of its provenance does.
WAY = ("suite", "networks", "development", "reading")
WAY_OF_STORIES = {"stories": "suite"} | {n: n for n in ("judge", "votes", "variant", "quality")}
FRAME_RATE = "frame_rate"


@dataclass(frozen=True)
class Scored:
    """A scores file.

    Attributes:
        path: Where it lies.
        way: How its videos were scored.
        networks: Of each label, what its networks are; empty where there are none.
        rows: Its videos that have a score, by name.
    """

    path: Path
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
        ``prompt``), ``pairs``, ``left_out`` (videos without a partner: of the first, of the other),
        ``clustered_by`` (``prompt``, ``name`` where names tell of prompts, or ``video``), ``frames`` (mean
        lengths of both) and ``differences``: by label the other's mean over the pairs minus the first's, its
        interval, and a verdict, as reports have them.

    Raises:
        UserError: A file cannot be read, or two were not scored alike or have no video in common.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UserError(
            f"{' '.join(map(str, paths))}: give two or more scores files, each once; the others are held"
            " against the first"
        )
    first, *others = (read_scored(path) for path in paths)
    return {
        "first": str(first.path),
        "suite": first.way["suite"],
        "against": {str(other.path): _against(first, other) for other in others},
    }


def read_scored(path: Path) -> Scored:
    """Read a scores file.

    Raises:
        UserError: It is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        made = document.get("provenance", {})
        way = {name: document.get(name) for name in WAY}
        way |= {name: made.get(place) for name, place in WAY_OF_STORIES.items()}
        # one rate for all, where a score depends on it
        way[FRAME_RATE] = sorted({v.get(FRAME_RATE) or 0 for v in document["videos"]})
        way["judge"] = {k: v for k, v in (way["judge"] or {}).items() if k != "url"}
        way["suite"] = str(document["suite"])
        networks = {label: one.get("networks") for label, one in document["scores"].items()}
        rows = {}
        for video in document["videos"]:
            row = _row(path.stem, video)
            if any(value is not None for value in row.scores.values()):
                rows[row.prompt_id] = row
    except (FileNotFoundError, PermissionError) as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{path} cannot be read ({reason}): check its name") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path} is no scores file: give what miga-bench score -o FILE.json has written"
        ) from error
    if not rows:
        raise UserError(f"{path} has no video with a score: score its videos again")
    return Scored(path, way, networks, rows)


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
    frames = int(video.get("frames") or 0)
    return Row(arm, name, prompt, 0, "", "done", Path(), frames, scores=scores)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a score is a finite number")
    return number


def _against(first: Scored, other: Scored) -> Document:
    _check_alike(first, other)
    by, left, right = _matched(first, other)
    pairs = [name for name in left if name in right]
    rows: list[Row] = []
    prompts = [left[name].prompt or right[name].prompt for name in pairs]
    clustered_by = "prompt" if any(prompts) else "video"
    if first.way["suite"] != STORIES:  # whose names end in a number of their own
        prompts, clustered_by = clusters(pairs, prompts)
    for name, prompt in zip(pairs, prompts, strict=True):
        for arm, row in (("first", left[name]), ("other", right[name])):
            rows.append(replace(row, arm=arm, prompt_id=name, prompt=prompt))
    run = Results(Path(), "", {}, {}, {}, rows, {}, {})
    measures = measures_of([run])
    motion = motion_of(measures)
    return {
        "paired_by": by,
        "pairs": len(pairs),
        "left_out": [_left_out(scored, by, set(pairs)) for scored in (first, other)],
        "clustered_by": clustered_by,
        "frames": [_mean([row.frames for row in run.of(arm)]) for arm in ("first", "other")],
        "differences": {measure.label: _difference(run, measure, motion) for measure in measures},
    }


def _left_out(scored: Scored, by: str, pairs: set[str]) -> int:
    if by == "name":
        return len(scored.rows) - len(pairs)
    return sum(row.prompt not in pairs for row in scored.rows.values())


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


def _check_alike(first: Scored, other: Scored) -> None:
    """Refuse values that came about in different ways.

    Raises:
        UserError: They did; the message says in what.
    """
    shared = [label for label in first.networks if label in other.networks]
    rated = any(label.startswith("dynamic_degree") for label in shared)
    ways = [name for name in first.way if first.way[name] != other.way[name]]
    if not rated and first.way["suite"] != "vbench-long":
        ways = [name for name in ways if name != FRAME_RATE]
    what = [f"{name}: {_plain(first.way[name])} and {_plain(other.way[name])}" for name in ways]
    what += [
        f"the networks of {label} differ"
        for label in shared
        if first.networks[label] != other.networks[label]
    ]
    if what or not shared:
        reason = what[0] if what else "they have no dimension in common"
        raise UserError(
            f"{first.path} and {other.path} were not scored alike ({reason}): score both with the same options"
        )


def _plain(value: Any) -> str:
    return str(value)[:80]


def _matched(first: Scored, other: Scored) -> tuple[str, Mapping[str, Row], Mapping[str, Row]]:
    """Return by what more pairs are found, and both sides' videos by it.

    Raises:
        UserError: There are none.
    """
    left, right = _by_name(first), _by_name(other)
    names = set(left) & set(right)
    texts = {name: {left[name].prompt, right[name].prompt} - {""} for name in names}
    others = sorted(name for name in names if len(texts[name]) > 1)
    prompts = first.by_prompt(), other.by_prompt()
    shared = set(prompts[0]) & set(prompts[1])
    if names and not others and len(names) >= len(shared):
        return "name", left, right
    if shared:  # 0001.mp4 may be of another text on either side
        return "prompt", *prompts
    why = f"{others[0]} is of another prompt in each" if others else "by name or by prompt"
    raise UserError(
        f"{first.path} and {other.path} have no video in common ({why}): name those of one prompt alike, or"
        " score both with --prompts"
    )


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
        title = f"{path} minus {document['first']}, {pairs}, intervals over {OVER[found['clustered_by']]}"
        if found["frames"][0] != found["frames"][1]:
            title += ", of {:.0f} and {:.0f} frames".format(*reversed(found["frames"]))
        if any(found["left_out"]):
            title += "; without a partner: {} and {}".format(*reversed(found["left_out"]))
        title = escape(title)
        shown = Table("score", "first", "other", "difference", "", "at equal motion", title=title)
        for label, one in found["differences"].items():
            measure = measure_of(label)
            shown.add_row(
                escape(f"{measure.title}, {measure.unit}".rstrip(", ")),
                measure.number(one["first"]),
                measure.number(one["other"]),
                _interval(measure, one, one["prompts"]),
                one["verdict"],
                _at_equal_motion(measure, one),
            )
        yield shown


def _at_equal_motion(measure: Measure, found: Mapping[str, Any]) -> str:
    equal = found["equal"]
    if not equal:
        return ""
    told: str = equal["verdict"]
    if equal["n"] < found["n"]:
        told += f", n = {equal['n']}"
    if equal["difference"] is None:
        return told
    return f"{_interval(measure, equal, found['prompts'])}: {told}"


def _interval(measure: Measure, found: Mapping[str, Any], prompts: int) -> str:
    text, ends = measure.signed(found["difference"], found["low"], found["high"], prompts)
    return f"{text} ({ends})" if ends else text
