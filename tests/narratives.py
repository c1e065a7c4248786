"""Stories of the embedded world beyond what the package tells: read, drawn at random, and rendered truly."""

from dataclasses import replace

import numpy as np
import torch

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import (
    COLORS,
    MAX_EVENTS,
    MOTIONS,
    PATTERNS,
    SIZES,
    TEXTURES,
    Event,
    Narrative,
    parse_caption,
    random_scene,
    values_of,
)

FADE_FRAMES = 8  # an event's change of looks is a cross-fade of half a second
# What of a look an attribute decides.
NUMBERS_OF = {
    "color": ("hue",),
    "size": ("radius",),
    "texture": ("texture",),
    "motion": ("motion",),
    "field": ("field_hue",),
    "pattern": ("pattern",),
}


def schedule(story):
    """Return the story's captions with the fraction of the video, in [0, 1), at which each begins."""
    scenes = story.scenes
    return [(i / len(scenes), scene.caption) for i, scene in enumerate(scenes)]


def parse_narrative(text):
    """Read a caption followed by events; a plain caption is a narrative of none."""
    opening, *rest = [part.strip() for part in text.lower().split(",")]
    return Narrative(parse_caption(opening), tuple(_parse_event(part) for part in rest))


def _parse_event(part):
    match part.split():
        case ["then", "moves", value] if value in MOTIONS:
            return Event("motion", value)
        case ["then", "the", "field", "turns", value] if value in COLORS:
            return Event("field", value)
        case ["then", "the", "field", "turns", value] if value in PATTERNS:
            return Event("pattern", value)
        case ["then", "turns", value]:
            for name, values in (("color", COLORS), ("texture", TEXTURES), ("size", SIZES)):
                if value in values:
                    return Event(name, value)
    raise AssertionError(f"no such event: {part!r}")


def random_narrative(rng, events, held_out=False):
    """Draw a story whose every event changes something, never a value to itself.

    ``events`` follow the opening, at most `MAX_EVENTS`; ``held_out`` is `random_scene`'s, for the opening.
    """
    assert 0 <= events <= MAX_EVENTS
    story = Narrative(random_scene(rng, held_out))
    for _ in range(events):
        attribute = rng.choice(rng.choice((("field",), ("color", "texture", "size"), ("motion",))))
        now = getattr(story.scenes[-1], attribute)
        values = [value for value in values_of()[attribute] if value not in (None, now)]
        story = Narrative(story.opening, (*story.events, Event(attribute, rng.choice(values))))
    return story


def render_narrative(story, rng, frames):
    """Render the true video of a story, each scene an equal share of it, at least one frame.

    What an event does not name stays as it was: the same sprite goes on from where it is. Returns frames
    ``[frames, 3, 64, 64]`` in [0, 1], and the look of each scene. ``rng`` draws the free numbers.
    """
    scenes = story.scenes
    looks = [world.draw_look(scenes[0], rng)]
    for event, scene in zip(story.events, scenes[1:], strict=True):
        fresh = world.draw_look(scene, rng)
        changed = {name: getattr(fresh, name) for name in NUMBERS_OF[event.attribute]}
        looks.append(replace(looks[-1], **changed))
    starts = [round(fraction * frames) for fraction, _ in schedule(story)] + [frames]
    parts, previous = [], looks[0]
    for i, look in enumerate(looks):
        length = starts[i + 1] - starts[i]
        path = world.positions(look, length + 1)
        part = world.draw(look, path[:-1])
        fade = min(FADE_FRAMES, length)
        if i:
            weight = ((np.arange(fade) + 1) / (fade + 1)).reshape(-1, 1, 1, 1).astype(np.float32)
            part[:fade] = weight * part[:fade] + (1 - weight) * world.draw(previous, path[:fade])
        parts.append(part)
        previous = look
        if i + 1 < len(looks):
            looks[i + 1] = replace(looks[i + 1], start=(float(path[-1, 0]), float(path[-1, 1])))
    return torch.from_numpy(np.concatenate(parts)), looks
