"""The language of the embedded world: captions, their parser, narratives, held-out prompts.

A caption names a shape, its color, its motion and the color of the field behind it. Size, texture
and the field's pattern may be named or left out::

    a red circle moves right on a blue field
    a large striped red circle moves right on a blue checkered field

A narrative is a caption followed by up to five events, each about one of three factors: the scene's
attribute (the field), the target's attribute (color, texture, size) or the target's action::

    a red circle moves right on a blue field, then turns green, then moves up
"""

import hashlib
import itertools
import random
from dataclasses import dataclass, replace

from miga_bench.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross", "star")
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
MOTIONS = ("right", "left", "up", "down")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
PATTERNS = TEXTURES
MAX_EVENTS = 5

# One in HELD_OUT_EVERY combinations of (shape, color, motion, field) is never trained on.
HELD_OUT_EVERY = 7

_OPTIONAL = {"size": SIZES, "texture": TEXTURES, "pattern": PATTERNS}
_REQUIRED = {"shape": SHAPES, "color": COLORS, "motion": MOTIONS, "field": COLORS}
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            "a",
            "the",
            "moves",
            "turns",
            "on",
            "field",
            "then",
            ",",
            *SHAPES,
            *COLORS,
            *MOTIONS,
            *SIZES,
            *TEXTURES,
        )
    )
)


@dataclass(frozen=True)
class Scene:
    """What a caption says; None where it leaves an attribute out."""

    shape: str
    color: str
    motion: str
    field: str
    size: str | None = None
    texture: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        for name, values in {**_REQUIRED, **_OPTIONAL}.items():
            value = getattr(self, name)
            if value not in values and not (value is None and name in _OPTIONAL):
                raise UserError(f"{name} is {value!r}; it must be one of {', '.join(values)}")

    @property
    def caption(self) -> str:
        """The sentence that says exactly this."""
        target = _join(self.size, self.texture, self.color, self.shape)
        return f"a {target} moves {self.motion} on a {_join(self.field, self.pattern)} field"

    @property
    def held_out(self) -> bool:
        """Whether this combination of shape, color, motion and field is kept from training."""
        key = f"{self.shape} {self.color} {self.motion} {self.field}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class Event:
    """One change in a narrative: ``attribute`` of the scene becomes ``value``."""

    attribute: str
    value: str

    @property
    def factor(self) -> str:
        """Which of the three narrative factors changes."""
        if self.attribute == "motion":
            return "target_action"
        in_scene = self.attribute in ("field", "pattern")
        return "scene_attribute" if in_scene else "target_attribute"

    @property
    def text(self) -> str:
        """The event's words, without the leading comma."""
        if self.attribute == "motion":
            return f"then moves {self.value}"
        if self.factor == "scene_attribute":
            return f"then the field turns {self.value}"
        return f"then turns {self.value}"


@dataclass(frozen=True)
class Narrative:
    """An opening scene and the events that change it, in order."""

    opening: Scene
    events: tuple[Event, ...] = ()

    @property
    def text(self) -> str:
        """The whole story in one sentence."""
        return ", ".join([self.opening.caption, *(event.text for event in self.events)])

    @property
    def scenes(self) -> list[Scene]:
        """The opening and the scene after each event (1 + events)."""
        scenes = [self.opening]
        for event in self.events:
            scenes.append(replace(scenes[-1], **{event.attribute: event.value}))
        return scenes


def parse_caption(text: str) -> Scene:
    """Read a plain caption.

    Args:
        text: A sentence of the grammar; letter case and spacing do not matter.

    Returns:
        What it says.

    Raises:
        UserError: If the sentence is not in the grammar; the message shows the form it must have.
    """
    words = text.lower().split()
    try:
        moves, on = words.index("moves"), words.index("on")
    except ValueError:
        raise _bad(text, "it needs the words 'moves' and 'on'") from None
    head, motion, tail = words[:moves], words[moves + 1 : on], words[on + 1 :]
    if len(head) < 3 or head[0] != "a" or len(motion) != 1:
        raise _bad(text, "it must begin 'a COLOR SHAPE moves MOTION on'")
    if not 3 <= len(tail) <= 4 or tail[0] != "a" or tail[-1] != "field":
        raise _bad(text, "it must end 'on a COLOR field'")
    said = {"shape": head[-1], "color": head[-2], "motion": motion[0], "field": tail[1]}
    adjectives = head[1:-2]
    for name in ("size", "texture"):
        if adjectives and adjectives[0] in _OPTIONAL[name]:
            said[name] = adjectives.pop(0)
    if adjectives:
        raise _bad(text, f"it does not understand {adjectives[0]!r} before the color")
    if len(tail) == 4:
        said["pattern"] = tail[2]
    try:
        return Scene(**said)
    except UserError as error:
        raise _bad(text, str(error)) from None


def values_of() -> dict[str, tuple[str | None, ...]]:
    """Every attribute's values; None among them where a caption may leave it out."""
    return {**_REQUIRED, **{name: (None, *values) for name, values in _OPTIONAL.items()}}


def random_scene(rng: random.Random, held_out: bool | None = False) -> Scene:
    """Draw a scene with every attribute named.

    Args:
        rng: Source of randomness.
        held_out: False for a training combination, True for a held-out one, None for either.
    """
    while True:
        said = {name: rng.choice(values) for name, values in {**_REQUIRED, **_OPTIONAL}.items()}
        scene = Scene(**said)
        if held_out is None or scene.held_out == held_out:
            return scene


def with_random_detail(scene: Scene, rng: random.Random, keep: float = 0.5) -> Scene:
    """Leave each optional adjective out with probability 1 - ``keep``."""
    size, texture, pattern = (
        value if rng.random() < keep else None
        for value in (scene.size, scene.texture, scene.pattern)
    )
    return replace(scene, size=size, texture=texture, pattern=pattern)


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """Captions whose combination of shape, color, motion and field was never trained on.

    Args:
        count: How many; combinations repeat, with other adjectives, once all were used.
        seed: Fixes the order and the adjectives.

    Returns:
        ``count`` plain captions, about half of the optional adjectives named.
    """
    rng = random.Random(seed)
    combinations = [
        Scene(*values)
        for values in itertools.product(SHAPES, COLORS, MOTIONS, COLORS)
        if Scene(*values).held_out
    ]
    rng.shuffle(combinations)
    captions = []
    for i in range(count):
        adjectives = {name: rng.choice(values) for name, values in _OPTIONAL.items()}
        scene = replace(combinations[i % len(combinations)], **adjectives)
        captions.append(with_random_detail(scene, rng).caption)
    return captions


def _join(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _bad(text: str, reason: str) -> UserError:
    return UserError(
        f"caption {text!r} is not understood: {reason}; the form is "
        "'a [SIZE] [TEXTURE] COLOR SHAPE moves MOTION on a COLOR [PATTERN] field'"
    )
