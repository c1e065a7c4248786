"""Prompts of a run, from a list or a file: read, named and checked before anything else happens.

A file is text with a prompt per line (``.txt``; lines that begin with ``# `` are comments), JSON lines
(``.jsonl``), or a list in YAML or JSON. An entry is a text, or a mapping with ``prompt`` and any of ``id``,
``then`` (video frame to text), ``negative_prompt``, ``frames``, ``seeds`` and ``dimensions`` (those of
VBench's that score its videos; all where it says nothing). Entries without an id are numbered: p001, p002.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError, near, placed
from miga_bench.harness.configurations import yaml_of
from miga_bench.harness.names import NAME, NAME_RULE
from miga_bench.harness.request import DEFAULT_FRAMES, PromptAt, check_characters, check_prompts
from miga_bench.harness.stories import open_suite
from miga_bench.metrics.suites import DIMENSIONS
from miga_bench.prompts import LISTS

FIELDS = ("prompt", "id", "then", "negative_prompt", "frames", "seeds", "dimensions")
KINDS = (".txt", ".jsonl", ".json", ".yaml", ".yml")
NARRATIVES = "narrlv:"
Entry = str | dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What a user wants to see, once for each seed.

    Attributes:
        id: Names its videos.
        prompts: The texts over the video.
        negative_prompt: None is the module's.
        frames: None is the run's.
        seeds: None is the run's.
        kind: Of a story, its part of the suite: its factor and number of atoms.
        at_once: Of a story in parts, all of it as one text, for methods whose prompt cannot change.
        dimensions: Of VBench's, those that score its videos; empty is all.
    """

    id: str
    prompts: tuple[PromptAt, ...]
    negative_prompt: str | None = None
    frames: int | None = None
    seeds: tuple[int, ...] | None = None
    kind: str = ""
    at_once: tuple[PromptAt, ...] = ()
    dimensions: tuple[str, ...] = ()

    def texts_for(self, one_prompt: bool) -> tuple[PromptAt, ...]:
        """Return the texts for a method, which may take one prompt only."""
        return self.at_once if one_prompt and self.at_once else self.prompts


def read_wishes(
    prompts: str | Path | Sequence[Entry],
    frames: int = DEFAULT_FRAMES,
    tna: Sequence[int] = (),
    whole: bool = False,
) -> list[Wish]:
    """Return the wishes of a list, or of the file or the suite of narratives with that name.

    Args:
        prompts: The list, the file's name, or ``narrlv:`` and a suite of narratives.
        frames: Length over which a story is told, in parts of equal length. Methods whose prompt cannot
            change get it whole.
        tna: Of a suite, the stories with so many narrative atoms; empty is all.
        whole: Give a story as one prompt, as NarrLV does, instead of one prompt after the other.

    Raises:
        UserError: The file or an entry is not what it must be; two entries are alike.
    """
    if isinstance(prompts, str) and prompts.startswith(NARRATIVES):
        return _stories(prompts.removeprefix(NARRATIVES), frames, tna, whole)
    if tna or whole:
        raise UserError(
            "data.tna and data.whole_stories are for suites of narratives: data.prompts is not"
            f" {NARRATIVES}NAME"
        )
    where, entries = ("data.prompts", prompts) if isinstance(prompts, list) else _read(str(prompts))
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: a list of prompts is wanted, with at least one")
    wishes = [_wish(f"{where}, entry {n}", n, entry) for n, entry in enumerate(entries, 1)]
    _check_unlike(where, wishes)
    return wishes


def _stories(narratives: str, frames: int, tna: Sequence[int], whole: bool) -> list[Wish]:
    suite = open_suite(narratives)
    if tna:
        suite = suite.select(None, tna)
    wishes = []
    for story in suite.items:
        parts = len(story.segments)
        starts = [round(part * frames / parts) for part in range(parts)]
        parted = tuple(map(PromptAt, story.segments, starts))
        at_once = (PromptAt(story.prompt),)
        prompts = at_once if whole else parted
        name = f"{story.part}-{story.group}-{story.index}"
        wishes.append(Wish(name, prompts, kind=story.part, at_once=at_once))
    return wishes


def _read(name: str) -> tuple[str, object]:
    path = LISTS.get(name, Path(name).expanduser())
    if path.suffix not in KINDS:
        raise UserError(
            f"data.prompts is {name!r}: give a list of prompts, a file ({', '.join(KINDS)}), or one of"
            f" {', '.join(LISTS)}, {NARRATIVES}tiny, {NARRATIVES}natural, {NARRATIVES}release"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check data.prompts") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    lines = [line for line in text.split("\n") if line.strip()]
    if path.suffix == ".txt":
        prompts = [line.strip(" \r") for line in lines]
        return name, [text for text in prompts if not (text == "#" or text.startswith("# "))]
    try:
        if path.suffix == ".jsonl":
            return name, [json.loads(line) for line in lines]
        return name, yaml_of(text)  # JSON is YAML
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {path.suffix[1:].upper()} ({error}): check it") from None


def _wish(where: str, number: int, entry: object) -> Wish:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str):
        raise UserError(f"{where}: a text is wanted, or a mapping with prompt: and a text")
    for name in entry:
        if name not in FIELDS:
            raise UserError(f"{where} has {name!r}: {near(str(name), FIELDS)}")
    identity = entry.get("id", f"p{number:03d}")
    if not isinstance(identity, str) or not NAME.fullmatch(identity):
        raise UserError(f"{where} has the id {identity!r}: ids name files: {NAME_RULE}")
    negative = entry.get("negative_prompt")
    if not isinstance(negative, str | None):
        raise UserError(f"{where} has the negative_prompt {negative!r}: a text is wanted")
    frames, seeds = entry.get("frames"), entry.get("seeds")
    if frames is not None:
        check_frames(frames, f"{where}: frames")
    if seeds is not None:
        check_seeds(seeds, f"{where}: seeds")
    prompts = (PromptAt(entry["prompt"].strip()), *_then(where, entry.get("then")))
    for text in [prompt.text for prompt in prompts] + [negative or ""]:
        check_characters(text, where, spaces="")
    with placed(where):
        check_prompts(prompts, frames, option="then")
    return Wish(
        identity,
        prompts,
        negative,
        frames,
        None if seeds is None else tuple(seeds),
        dimensions=_dimensions(where, entry.get("dimensions")),
    )


def _dimensions(where: str, names: object) -> tuple[str, ...]:
    if names is None:
        return ()
    if not isinstance(names, list) or not names:
        raise UserError(
            f"{where} has the dimensions {names!r}: a list of VBench's is wanted; leave it out for all"
        )
    for name in names:
        if str(name) not in DIMENSIONS:
            raise UserError(f"{where} has the dimension {name!r}: {near(str(name), DIMENSIONS)}")
    return tuple(name for name in DIMENSIONS if name in names)


def _then(where: str, then: object) -> list[PromptAt]:
    rule = "then is a mapping of frames to texts, like {60: a blue circle}"
    if then is None:
        return []
    if not isinstance(then, Mapping):
        raise UserError(f"{where}: {rule}")
    out = []
    for frame, text in then.items():
        if not str(frame).isdecimal() or not isinstance(text, str):
            raise UserError(f"{where}: {rule}, not {frame!r}: {text!r}")
        out.append(PromptAt(text.strip(), int(frame)))
    return out


def check_frames(frames: object, what: str) -> None:
    """Refuse what is no number of frames.

    Raises:
        UserError: It is none.
    """
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
        raise UserError(f"{what} is {frames!r}: a video has at least 1 frame")


def check_seeds(seeds: object, what: str) -> None:
    """Refuse what is no list of seeds without repetition.

    Raises:
        UserError: It is none.
    """
    numbers = seeds if isinstance(seeds, list | tuple) else []
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise UserError(f"{what} is {seeds!r}: a list of whole numbers is wanted, like [0, 1]")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{what} is {seeds!r}: a seed is in it twice, which makes the same video")


def _check_unlike(where: str, wishes: Sequence[Wish]) -> None:
    ids: dict[str, int] = {}
    contents: dict[object, int] = {}
    for number, wish in enumerate(wishes, 1):
        # file systems may not tell upper from lower case
        if ids.setdefault(wish.id.lower(), number) != number:
            raise UserError(
                f"{where}: entries {ids[wish.id.lower()]} and {number} have the id {wish.id!r}:"
                " name one of them differently"
            )
        content = (wish.prompts, wish.negative_prompt, wish.frames, wish.seeds)
        if contents.setdefault(content, number) != number:
            raise UserError(
                f"{where}: entries {contents[content]} and {number} are the same prompt: leave one"
                " out, or give it seeds of its own"
            )
