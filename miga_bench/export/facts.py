"""What an export folder knows of its backbone beside the graphs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miga_bench.backbones import BACKBONES
from miga_bench.errors import UserError
from miga_bench.export.request import FACTS, FACTS_FORMAT


@dataclass(frozen=True)
class ExportFacts:
    """The content of an export's ``backbone.json``.

    Attributes:
        folder: Where it lies.
        name: What the backbone is called.
        family: ``wan`` or ``videocrafter2``.
        weights_hash: SHA-256 of the weights that were exported.
        window: Latents of a short clip.
        latent_shape: Channels, height, width.
        frame_rate: Of the decoded video.
        negative_prompt: What guidance steers away from.
        text: ``length`` in tokens, and the ``unknown`` token.
        row_flops: ``a, b, c``: a row of F latents takes ``a + b F + c F^2`` operations.
        frames_per_latent: Frames that every latent but the first decodes to.
        rotary: On Wan: width of a head, and patch.
        flow_shift: On Wan: of the schedule.
        row_bytes: About what a row of a window takes in a denoiser call, by ``Backbone.clip_bytes``; None in
            exports that are older than it. It decides no video.
        defaults: On VideoCrafter2: ``fps``, ``fps_range``, ``grid``, ``rescale``, ``eta``.
    """

    folder: Path
    name: str
    family: str
    weights_hash: str
    window: int
    latent_shape: list[int]
    frame_rate: float
    negative_prompt: str
    text: dict[str, Any]
    row_flops: list[int]
    frames_per_latent: int
    rotary: dict[str, Any] | None = None
    flow_shift: float | None = None
    row_bytes: int | None = None
    defaults: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> ExportFacts:
        """Read them.

        Raises:
            UserError: The file is missing, damaged, or of another format.
        """
        path = folder / FACTS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format", None) != FACTS_FORMAT:
                raise ValueError(f"it is not of format {FACTS_FORMAT}")
            return cls(folder, **content)
        except FileNotFoundError:
            raise UserError(
                f"{folder} is no export: {FACTS} is missing; make one by miga-bench export onnx"
            ) from None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} cannot be used ({error}): export again") from error

    @property
    def preset(self) -> str:
        """The preset that methods use where none is named, as with the model that was exported."""
        return BACKBONES[self.name].preset if self.name in BACKBONES else "paper"

    def operations(self, frames: int) -> int:
        """Return the floating point operations of one row of so many latents."""
        constant, linear, square = self.row_flops
        return constant + linear * frames + square * frames * frames
