"""NarrLV's prompts and questions: loaded, checked, and what is odd about them said.

A suite is a folder of JSON files, one per factor and number of narrative atoms (TNA), in the structure
of https://github.com/AMAP-ML/NarrLV (arXiv 2507.11245): the file's name ends in ``{factor}_tna_{n}.json``
and maps a class to a list of items, each with a prompt, its n segments, and yes/no questions by
category. The released suite is `release.fetch_release`; any folder or file of that structure will do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError

SCENE_TYPE, TARGET, LAYOUT = "Scene Type", "Main Target Category", "Main Target Layout"
OPENING = "Initial Scene Attributes"
ANOMALIES = ("Scene Anomaly Detection", "Main Target Anomaly Detection")
FIDELITY = (SCENE_TYPE, TARGET, OPENING, LAYOUT, *ANOMALIES)
FIRST_FRAME = (SCENE_TYPE, TARGET, OPENING, LAYOUT)  # asked about the first frame only
EVOLUTIONS = {
    "scene_attribute": "Scene Attribute Evolution",
    "target_action": "Main Target Action Evolution",
    "target_attribute": "Main Target Attribute Evolution",
}
FACTORS = ("scene_attribute", "target_attribute", "target_action")
# The release lists these too, but asks nothing about them and scores nothing by them.
_UNUSED = tuple(f"Interaction Evolution Between Main Targets_{i}" for i in (0, 1))
CATEGORIES = (*FIDELITY, *(f"{name}_{i}" for name in EVOLUTIONS.values() for i in (0, 1)), *_UNUSED)

_FILE = re.compile(
    r"(?P<factor>scene_attribute|target_attribute|target_action)_tna_(?P<tna>[1-9])$"
)
_CLASS = re.compile(r"[A-Za-z0-9-]{1,40}")
# What no file name may hold on any of the usual systems.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_FENCE = "```"


@dataclass(frozen=True)
class Story:
    """One prompt with its questions, an item of the original's files.

    Attributes:
        part: Stem of the suite file; also the folder of its videos.
        factor: What changes: one of `FACTORS`.
        tna: Number of narrative atoms, 1 or more.
        group: The class within the file.
        index: Position in the class, from 0.
        prompt: The whole story, code fences removed.
        segments: The story's ``tna`` parts, in order.
        questions: By category, in the file's order; categories without questions (null) are left out.
    """

    part: str
    factor: str
    tna: int
    group: str
    index: int
    prompt: str
    segments: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """Name of its video without ending: class, index and the prompt's first 20 characters."""
        return f"{self.group}_{self.index}_{_UNSAFE.sub('_', self.prompt[:20])}"

    @property
    def key(self) -> str:
        """What no other item of the suite is called."""
        return f"{self.part}/{self.name}"

    @property
    def evolutions(self) -> tuple[str, ...]:
        """Evolutions that it asks about, in the order in which the original looks for them."""
        return tuple(name for name in EVOLUTIONS.values() if f"{name}_0" in self.questions)

    def video(self, folder: Path) -> Path:
        """Where the original expects this item's video, below the folder of all videos."""
        return folder / self.part / f"{self.name}.mp4"


@dataclass(frozen=True)
class Suite:
    """Items in order of factor, TNA and file.

    Attributes:
        items: The items.
        notes: What is irregular but scored all the same, one line each.
        digest: SHA-256 over the names and contents of all files.
        source: Where it was loaded from.
    """

    items: tuple[Story, ...]
    notes: tuple[str, ...]
    digest: str
    source: str

    def select(
        self, factors: Collection[str] | None = None, tnas: Collection[int] | None = None
    ) -> Suite:
        """Keep some factors and numbers of atoms; the digest stays that of the whole suite.

        Raises:
            UserError: Nothing is left.
        """
        items = tuple(
            item
            for item in self.items
            if (factors is None or item.factor in factors) and (tnas is None or item.tna in tnas)
        )
        if not items:
            have = sorted({f"{item.factor} {item.tna}" for item in self.items})
            raise UserError(
                f"no items of factors {_said(factors)} with TNA {_said(tnas)} in {self.source}; "
                f"it has {', '.join(have)}"
            )
        return replace(self, items=items)


def load_suite(path: str | Path) -> Suite:
    """Load and check a suite.

    Args:
        path: A folder of suite files, or one file.

    Returns:
        The suite; what is irregular is in its notes.

    Raises:
        UserError: There is no suite there, or a file has another structure; names file and item.
    """
    path = Path(path)
    notes: list[str] = []
    files = _files(path, notes)
    items: list[Story] = []
    digest = hashlib.sha256()
    for (factor, tna), file in files.items():
        raw = file.read_bytes()
        digest.update(f"{file.name}\n{len(raw)}\n".encode() + raw)
        items += _read_file(file, raw, factor, tna, notes)
    return Suite(tuple(items), tuple(notes), digest.hexdigest(), str(path))


def _files(path: Path, notes: list[str]) -> dict[tuple[str, int], Path]:
    if not path.exists():
        raise UserError(
            f"no narrative suite at {path}; give a folder of *_tna_N.json files or one file"
        )
    found: dict[tuple[str, int], Path] = {}
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        match = _FILE.search(file.stem)
        if match is None:
            if path.is_dir():
                notes.append(f"{file.name}: not the name of a suite file; left out")
            continue
        cell = match["factor"], int(match["tna"])
        if cell in found:
            raise UserError(
                f"{found[cell].name} and {file.name} in {path} are both {cell[0]} with TNA {cell[1]}; "
                "keep one suite per folder"
            )
        found[cell] = file
    if not found:
        raise UserError(
            f"no narrative suite at {path}; the names of its files must end in FACTOR_tna_N.json, "
            f"FACTOR one of {', '.join(FACTORS)}"
        )
    return dict(sorted(found.items(), key=lambda cell: (FACTORS.index(cell[0][0]), cell[0][1])))


def _read_file(file: Path, raw: bytes, factor: str, tna: int, notes: list[str]) -> list[Story]:
    try:
        groups = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); it must be a suite file") from None
    if not isinstance(groups, dict) or not groups:
        raise UserError(
            f"{file} must be an object from class to a list of items; it is {_kind(groups)}"
        )
    items: list[Story] = []
    for group, entries in groups.items():
        if not _CLASS.fullmatch(group):
            raise UserError(f"{file}: class {group!r} must be 1 to 40 letters, digits or hyphens")
        if not isinstance(entries, list):
            raise UserError(
                f"{file}: class {group!r} must be a list of items; it is {_kind(entries)}"
            )
        for index, entry in enumerate(entries):
            where = f"{file}: item {group}[{index}]"
            items.append(_read_item(where, entry, file.stem, factor, tna, group, index, notes))
    if not items:
        raise UserError(f"{file} has no items; remove it or fill it")
    return items


def _read_item(
    where: str,
    entry: Any,
    part: str,
    factor: str,
    tna: int,
    group: str,
    index: int,
    notes: list[str],
) -> Story:
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object; it is {_kind(entry)}")
    prompt = entry.get("prompt_gen")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: 'prompt_gen' must be a text; it is {_kind(prompt)}")
    if _FENCE in prompt:
        notes.append(f"{where}: the prompt is in a code fence; removed")
        prompt = prompt.strip().removeprefix(_FENCE).removesuffix(_FENCE).strip("\n")
    segments = _texts(f"{where}: 'prompt_gen_list_extract'", entry.get("prompt_gen_list_extract"))
    if len(segments) != tna:
        raise UserError(
            f"{where} has {len(segments)} segments; a file of TNA {tna} needs {tna} each"
        )
    asked = entry.get("auto_gen_question")
    if not isinstance(asked, dict):
        raise UserError(f"{where}: 'auto_gen_question' must be an object; it is {_kind(asked)}")
    questions: dict[str, tuple[str, ...]] = {}
    for category, texts in asked.items():
        if category not in CATEGORIES:
            known = ", ".join(CATEGORIES)
            raise UserError(
                f"{where}: category {category!r} is unknown; the categories are {known}"
            )
        if texts is None:
            continue
        questions[category] = _texts(f"{where}: questions of {category!r}", texts)
        if not texts:
            notes.append(
                f"{where}: {category!r} has no questions; the original gets NaN and drops the video"
            )
    item = Story(part, factor, tna, group, index, prompt, segments, questions)
    _check_evolutions(where, item, notes)
    return item


def _check_evolutions(where: str, item: Story, notes: list[str]) -> None:
    """Whether everything the scores divide by or look up is there."""
    own = EVOLUTIONS[item.factor]
    if own not in item.evolutions:
        raise UserError(
            f"{where} needs the category '{own}_0': that is what a {item.factor} file asks"
        )
    if item.tna > 1 and f"{item.evolutions[0]}_1" not in item.questions:
        raise UserError(
            f"{where} needs the category '{item.evolutions[0]}_1': TNA {item.tna} has transitions"
        )
    for name in item.evolutions:
        states, changes = (item.questions.get(f"{name}_{i}", ()) for i in (0, 1))
        if not states or len(changes) >= len(states):
            raise UserError(
                f"{where}: {len(changes)} questions '{name}_1' and {len(states)} '{name}_0'; "
                "each transition needs the states before and after it"
            )
        if len(states) != item.tna:
            notes.append(f"{where}: {len(states)} questions of '{name}_0' instead of {item.tna}")
    if len(item.evolutions) > 1:
        notes.append(f"{where}: asks about {' and '.join(item.evolutions)} at once")


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise UserError(f"{where} must be a list of texts; it is {_kind(value)}")
    return tuple(value)


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    if isinstance(value, list | dict | str) and not value:
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _said(values: Collection[Any] | None) -> str:
    return "any" if values is None else ", ".join(str(value) for value in values)
