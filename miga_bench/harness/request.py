"""What a user asks for, checked before any model is loaded."""

from __future__ import annotations

import operator
import os
import stat
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.export.choice import DenoiserChoice
from miga_bench.harness.files import nearest

LONGEST_PROMPT = 4000  # characters; the text encoder's own limit, in tokens, is checked by it
DEFAULT_FRAMES = 300
# bytes; file systems take 255, and a file on its way to its name has a longer one
LONGEST_NAME = 200


# What turns the direction of text, and can show a reader other words than a model is told.
_TURNING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


@dataclass(frozen=True)
class PromptAt:
    """A prompt and the video frame from which it holds.

    Raises:
        UserError: The text is none, or the frame no integer.
    """

    text: str
    frame: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(
                f"a prompt is of type {type(self.text).__name__}: it must be a text, such as"
                " PromptAt('a red circle')"
            )
        _set(self, "frame", _integer("a prompt's frame", self.frame))


@dataclass(frozen=True)
class GenerateRequest:
    """One video to make.

    Attributes:
        prompts: The texts over the video, the first from frame 0. A single one may be given as it is, as a
            text, too.
        output: The mp4, or its path as a text; the contact sheet and the record lie beside it (.png, .json).
        method: A name that ``miga-bench list methods`` shows, or the import path of a sampler of one's own.
        backbone: A name, a hub id or a folder.
        frames: Video frames to make; None is the method's default length.
        endless: Go on until stopped.
        seed: The video's seed.
        preset: A named set of settings; None is the backbone's default.
        overrides: Single settings, by name, as typed.
        negative_prompt: What to steer away from; None is the backbone's default.
        device: As torch names it; None lets the backbone choose.
        dtype: Precision of the denoiser; None is the family's policy.
        offload: Keep only the part in use on the GPU.
        denoiser: What runs it, see ``DenoiserChoice``; None is what finishes first, see ``automatic_export``.
        height: Frame height in pixels; None is the backbone's own.
        width: Frame width in pixels; None is the backbone's own.
        overwrite: Replace files that exist.
        lossless: Keep every pixel value in the mp4.

    Raises:
        UserError: A value is of a type that cannot be meant.
    """

    prompts: Sequence[PromptAt]
    output: Path = Path("out.mp4")
    method: str = "miga"
    backbone: str = "tiny-wan"
    frames: int | None = None
    endless: bool = False
    seed: int = 0
    preset: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    negative_prompt: str | None = None
    device: str | None = None
    dtype: str | None = None
    offload: bool = False
    denoiser: str | None = "torch"
    height: int | None = None
    width: int | None = None
    overwrite: bool = False
    lossless: bool = False

    def __post_init__(self) -> None:
        # nothing checks types where Python calls, and what slips through fails late, or is another video
        _set(self, "prompts", _prompts(self.prompts))
        if not isinstance(self.output, str | os.PathLike):
            raise UserError(f"output is {self.output!r}: it must be a path, such as 'out.mp4'")
        _set(self, "output", Path(self.output))
        _set(self, "seed", _integer("seed", self.seed))
        for name in ("frames", "height", "width"):
            value = getattr(self, name)
            _set(self, name, None if value is None else _integer(name, value))

    @property
    def leaves_denoiser_open(self) -> bool:
        """Whether the denoiser may be run by anything that makes the same video, up to rounding."""
        changed = (self.denoiser, self.dtype, self.height, self.width)
        return not self.offload and all(value is None for value in changed)

    @property
    def contact_sheet(self) -> Path:
        """Where the contact sheet goes."""
        return self.output.with_suffix(".png")

    @property
    def record(self) -> Path:
        """Where the record of settings and cost goes."""
        return self.output.with_suffix(".json")

    def check(self) -> None:
        """Refuse what can be refused without a model.

        Raises:
            UserError: What is wrong, the rule, what to do.
        """
        self.check_wishes()
        _check_output(self.output)
        for path in (self.output, self.contact_sheet, self.record):
            if path.is_dir():
                raise UserError(f"{path} is a folder, where a file is to be: choose another -o")
            if path.exists() and not self.overwrite:
                raise UserError(f"{path} exists: add --force to replace it, or choose another -o")

    def check_wishes(self) -> None:
        """Refuse what can be refused without a model, but for the files.

        Raises:
            UserError: What is wrong, the rule, what to do.
        """
        check_characters(self.negative_prompt or "", "the negative prompt")
        check_prompts(self.prompts, self.frames or (None if self.endless else DEFAULT_FRAMES))
        _check_length(self.frames, self.endless)
        for name, size in (("height", self.height), ("width", self.width)):
            if size is not None and size <= 0:
                raise UserError(f"--{name} {size}: a size is at least 1 pixel")
        if self.denoiser is not None:
            DenoiserChoice.parse(self.denoiser)


def _set(instance: object, name: str, value: object) -> None:
    """Set a field of a dataclass that is frozen for everybody else."""
    object.__setattr__(instance, name, value)


def _integer(name: str, value: object) -> int:
    """Return a number as Python's own integer.

    Raises:
        UserError: It is none.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{name} is {value!r}: it must be an integer, such as 5") from None


def _prompts(given: object) -> tuple[PromptAt, ...]:
    """Return what was given as the texts over a video; a single one may stand for itself.

    Raises:
        UserError: It is something else.
    """
    if isinstance(given, str | PromptAt):
        given = [given]
    if not isinstance(given, Sequence):
        raise UserError(
            f"prompts are of type {type(given).__name__}: give a text, or a list of PromptAt"
        )
    if len(given) == 1 and isinstance(given[0], str):
        given = [PromptAt(given[0])]
    for prompt in given:
        if not isinstance(prompt, PromptAt):
            raise UserError(
                f"one of {len(given)} prompts is of type {type(prompt).__name__}: of several, say from which"
                " frame each holds, as PromptAt(text, frame)"
            )
    return tuple(given)


def check_characters(text: str, where: str, spaces: str = "\t\n\r") -> None:
    """Refuse characters that control a terminal, or show a reader other words than the model gets.

    Args:
        text: Any.
        where: What it is, for the message.
        spaces: Control characters that are allowed nevertheless.

    Raises:
        UserError: It has a character that is refused.
    """
    for character in text:
        controls = unicodedata.category(character) in ("Cc", "Cs") or character in _TURNING
        if controls and character not in spaces:
            raise UserError(
                f"{where} holds the control character U+{ord(character):04X}: take it out"
            )


def check_prompts(prompts: Sequence[PromptAt], frames: int | None, option: str = "--then") -> None:
    """Refuse prompts that are missing, empty, too long, hold control characters, or out of order.

    Args:
        prompts: The texts over the video.
        frames: Video frames; None is without end.
        option: How the user gave the later ones.

    Raises:
        UserError: What is wrong, the rule, what to do.
    """
    if not prompts or prompts[0].frame != 0:
        begins = f"begins at frame {prompts[0].frame}" if prompts else "is missing"
        raise UserError(f"the first prompt {begins}: give one that begins at frame 0")
    for prompt in prompts:
        if not prompt.text.strip():
            raise UserError("the prompt is empty: describe the video in words")
        check_characters(prompt.text, "the prompt")
        if len(prompt.text) > LONGEST_PROMPT:
            raise UserError(
                f"the prompt has {len(prompt.text)} characters: shorten it to {LONGEST_PROMPT}"
            )
    for before, after in pairwise(prompts):
        if after.frame <= before.frame:
            raise UserError(
                f"{option} {after.frame}:... comes after frame {before.frame}: frames must rise"
            )
    if frames is not None and prompts[-1].frame >= max(frames, 1):
        raise UserError(
            f"{option} {prompts[-1].frame}:... begins after the last of {frames} frames:"
            " choose an earlier frame or more --frames"
        )


def _check_length(frames: int | None, endless: bool) -> None:
    if frames is not None and frames <= 0:
        raise UserError(f"--frames {frames}: a video has at least 1 frame")
    if frames is not None and endless:
        raise UserError("--frames and --endless exclude each other: give one of them")


def _check_output(output: Path) -> None:
    if output.suffix != ".mp4":
        better = output.with_suffix(".mp4").name if output.name else "out.mp4"
        raise UserError(f"-o {output}: the video is an H.264 mp4, name it for example {better}")
    size = len(os.fsencode(output.name))
    if size > LONGEST_NAME:
        raise UserError(
            f"-o: the file's name has {size} bytes, and the files beside it have longer ones: shorten it to"
            f" {LONGEST_NAME}"
        )
    if output.is_dir():
        raise UserError(f"-o {output} is a folder: name a file in it")
    check_writable(output.parent)


def check_writable(folder: Path, option: str = "-o") -> None:
    """Refuse a folder in which no file can be made (it need not exist yet).

    Args:
        folder: Where files are to be.
        option: What the user may change.

    Raises:
        UserError: The folder, or the nearest one above it that exists, cannot be written.
    """
    place = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        whose = ""
        if isinstance(error, PermissionError):
            facts = place.stat()
            whose = f"; {stat.filemode(facts.st_mode)}, of user {facts.st_uid}"
        raise UserError(
            f"cannot write in {place} ({error.strerror}{whose}): choose another {option}"
        ) from None
