"""Writes the embedded world's narrative suite: ``python -m miga_bench.backbones.tiny.suite [FOLDER]``.

It has NarrLV's structure (see `miga_bench.metrics.narrlv.suite`), all three factors and TNA 1 to 6, with
openings that no model was trained on; `judge.ReaderJudge` answers its questions exactly. A story's states
differ from one to the next; colors and fields never come back, motions do, as there are four of them and
up to six states. The files in ``miga_bench/prompts/tiny`` are this command's output.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miga_bench.backbones.tiny.grammar import (
    COLORS,
    MAX_EVENTS,
    MOTIONS,
    SIZES,
    Event,
    Narrative,
    Scene,
    random_scene,
)

FOLDER = Path(__file__).parents[2] / "prompts" / "tiny"
PROMPTS = 6  # per file, the fewest that a report gives a verdict on
MOST_ATOMS = MAX_EVENTS + 1
_CATEGORIES = {
    "scene_attribute": "Scene Attribute Evolution",
    "target_attribute": "Main Target Attribute Evolution",
    "target_action": "Main Target Action Evolution",
}


def narratives(factor: str, tna: int) -> list[Narrative]:
    """Return the stories of one file: ``tna`` states that differ in one attribute of the factor.

    Args:
        factor: One of NarrLV's three.
        tna: 1 to `MOST_ATOMS`.
    """
    rng = random.Random(f"{factor}/{tna}")
    out: list[Narrative] = []
    # a story of one state may be one of another factor, too: no story is in the suite twice
    others = itertools.takewhile(lambda before: before != factor, _CATEGORIES)
    taken = {story.text for before in others for story in narratives(before, tna)}
    while len(out) < PROMPTS:
        story = _narrative(factor, tna, len(out), rng)
        if story.text not in taken:
            out.append(story)
            taken.add(story.text)
    return out


def suite_file(factor: str, tna: int) -> dict[str, list[dict[str, Any]]]:
    """Return one file's content: class (here always "1") to items."""
    return {"1": [_item(story, factor, tna) for story in narratives(factor, tna)]}


def write_suite(folder: Path) -> list[Path]:
    """Write all 18 files; existing ones are replaced.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for factor in _CATEGORIES:
        for tna in range(1, MOST_ATOMS + 1):
            path = folder / f"tiny_{factor}_tna_{tna}.json"
            content = json.dumps(suite_file(factor, tna), indent=1) + "\n"
            path.write_text(content, encoding="utf-8", newline="\n")
            paths.append(path)
    return paths


def _narrative(factor: str, tna: int, number: int, rng: random.Random) -> Narrative:
    opening = random_scene(rng, held_out=True)
    # Textures and patterns cannot be read back, so nothing is told about them.
    opening = Scene(opening.shape, opening.color, opening.motion, opening.field)
    attribute = _attribute(factor, tna, number)
    if attribute == "size":
        opening = Scene(
            opening.shape, opening.color, opening.motion, opening.field, size=rng.choice(SIZES)
        )
    values = _path(getattr(opening, attribute), attribute, tna - 1, rng)
    return Narrative(opening, tuple(Event(attribute, value) for value in values))


def _attribute(factor: str, tna: int, number: int) -> str:
    """Two sizes make a story of one or two states; longer ones need the colors."""
    if factor == "target_attribute":
        return "size" if tna <= 2 and number % 2 else "color"
    return "field" if factor == "scene_attribute" else "motion"


def _path(first: str, attribute: str, steps: int, rng: random.Random) -> list[str]:
    """Values after the first, none like the one before it."""
    if attribute in ("color", "field"):
        return rng.sample([color for color in COLORS if color != first], steps)
    values: Sequence[str] = MOTIONS if attribute == "motion" else SIZES
    path = [first]
    for _ in range(steps):
        path.append(rng.choice([value for value in values if value != path[-1]]))
    return path[1:]


def _item(story: Narrative, factor: str, tna: int) -> dict[str, Any]:
    opening = story.opening
    attribute = story.events[0].attribute if story.events else _about(opening, factor)
    states = [getattr(scene, attribute) for scene in story.scenes]
    what = "field" if factor == "scene_attribute" else opening.shape
    verb = "moves" if attribute == "motion" else "is"
    turn = "change its motion" if attribute == "motion" else "turn"
    contain = "Does the video contain any segments where the"
    questions: dict[str, list[str] | None] = {
        "Scene Type": [f"Does the scene take place on a {opening.field} field?"],
        "Main Target Category": [f"Does the scene feature a {opening.shape}?"],
        "Initial Scene Attributes": None,
        "Main Target Layout": [
            f"Is there a {opening.color} {opening.shape} on a {opening.field} field?"
        ],
    }
    if factor == "scene_attribute":
        questions["Initial Scene Attributes"] = [f"Is there a {opening.field} field?"]
    for each, category in _CATEGORIES.items():
        own = each == factor
        questions[f"{category}_0"] = (
            [f"{contain} {what} {verb} {state}?" for state in states] if own else None
        )
        questions[f"{category}_1"] = (
            [
                f"Does the {what} {turn} from {before} to {after} over time?"
                for before, after in itertools.pairwise(states)
            ]
            if own and tna > 1
            else None
        )
    questions["Scene Anomaly Detection"] = [
        "Does the field undergo abnormal deformation over time?"
    ]
    questions["Main Target Anomaly Detection"] = [
        f"Does the {opening.shape} undergo abnormal deformation over time?"
    ]
    return {
        "prompt_gen": story.text,
        "prompt_gen_list_extract": [scene.caption for scene in story.scenes],
        "auto_gen_question": questions,
    }


def _about(opening: Scene, factor: str) -> str:
    """What a story without events is about."""
    if factor == "target_attribute":
        return "size" if opening.size else "color"
    return "field" if factor == "scene_attribute" else "motion"


def main() -> None:
    """Write the suite to the folder given, by default into the package."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    paths = write_suite(folder)
    print(f"{len(paths)} files in {folder}")


if __name__ == "__main__":
    main()
