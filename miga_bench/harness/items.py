"""An item: one video to make, with everything that decides what it shows, and a key made of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from miga_bench.harness.request import GenerateRequest, PromptAt

KEY_DIGITS = 16


@dataclass(frozen=True)
class Item:
    """One video to make. Items with the same content have the same key.

    Attributes:
        backbone: The model's name; of one in a folder or file, whose hashes say which, only the family.
        weights_hash: SHA-256 of its weights, None if the model gives none.
        precision: Type of the denoiser's arithmetic, as Lightning names it: ``32-true``.
        method: The method's name, or the import path of a sampler of the user's own.
        settings: Its settings, complete: nothing is left to a preset.
        prompts: The texts over the video, the first from frame 0.
        negative_prompt: What guidance steers away from.
        seed: The video's seed.
        frames: Frames to make.
        height: Frame height in pixels.
        width: Frame width in pixels.
        lossless: Whether the file keeps every pixel value.
        denoiser: What runs the denoiser, None where it is the family's own module.
        configuration_hash: SHA-256 of what else decides a video, None for a model that has a name. Of a
            backbone of the user's own it is what the class says, or of its import path, arguments and file.
        uncut: The texts as they were given, None where the model is told all of them.
        code_hash: SHA-256 of the file of a sampler of the user's own, None for ours.
        dimensions: Of VBench's, those that score the video; empty is all. They decide nothing in it, and are
            neither in ``spec`` nor in the key.
    """

    backbone: str
    weights_hash: str | None
    precision: str
    method: str
    settings: Mapping[str, Any]
    prompts: tuple[PromptAt, ...]
    negative_prompt: str
    seed: int
    frames: int
    height: int
    width: int
    lossless: bool = False
    denoiser: str | None = None
    configuration_hash: str | None = None
    uncut: tuple[str, ...] | None = None
    code_hash: str | None = None
    dimensions: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """What the video should show, told to the model or not."""
        return self.uncut or tuple(prompt.text for prompt in self.prompts)

    def with_texts(self, prompts: tuple[PromptAt, ...], wanted: Sequence[str]) -> Item:
        """Return the item with ``prompts`` as the text for the model and ``wanted`` as the full text.

        The text for the model may be shortened.
        """
        uncut = tuple(wanted)
        whole = uncut == tuple(prompt.text for prompt in prompts)
        return replace(self, prompts=prompts, uncut=None if whole else uncut)

    def spec(self) -> dict[str, Any]:
        """Return the content as plain values, for files and for data loaders."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        del plain["dimensions"]
        return plain

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Item:
        """Return the item of a ``spec``."""
        prompts = tuple(PromptAt(**prompt) for prompt in spec["prompts"])
        uncut = tuple(spec["uncut"]) if spec["uncut"] else None
        return cls(**{**spec, "prompts": prompts, "uncut": uncut})

    @property
    def key(self) -> str:
        """The first 16 hex digits of the SHA-256 of the content as canonical JSON."""
        text = json.dumps(self.spec(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:KEY_DIGITS]

    def request(self) -> GenerateRequest:
        """Return the item as ``generate`` knows it; where the file goes is the store's matter."""
        return GenerateRequest(
            prompts=self.prompts,
            output=Path("video.mp4"),
            method=self.method,
            backbone=self.backbone,
            frames=self.frames,
            seed=self.seed,
            negative_prompt=self.negative_prompt,
            lossless=self.lossless,
        )
