"""What a user asks of an export, checked before anything heavy is imported."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.export.sidecar import PRECISIONS

OPSETS = {
    23: "TensorRT 10.15 and newer, ONNX Runtime 1.23 and newer (on a GPU 1.25)",
    20: "older ones, at small sizes: without Attention as an operator all of its scores are in memory",
}
BF16_FROM = 22  # of opsets
PARTS = ("denoiser", "text", "vae")
DYNAMIC = ("batch", "frames")
FACTS = "backbone.json"
FACTS_FORMAT = 1
GRAPHS = ("denoiser", "text_encoder", "vae_decoder", "vae_decoder_first", "vae_decoder_step")
# what exports and engines of them write into their folder
EXPORTED = (
    FACTS,
    "README.md",
    *(f"{graph}{end}" for graph in GRAPHS for end in (".json", ".onnx", ".onnx.data")),
    "denoiser.probe.safetensors",
    *(f"tokenizer/{name}" for name in ("*.json", "*.txt", "*.model", "*.jinja")),
    *(f"engines/{name}" for name in ("*.engine", "*.json", "*.cache", "*.part")),
)


@dataclass(frozen=True)
class OnnxRequest:
    """One export.

    Attributes:
        backbone: A name, a folder or a Hub id.
        output: The folder to write.
        precision: ``fp32``, ``fp16`` or ``bf16``, of the denoiser; the autoencoder stays float32.
        opset: Version of ONNX's operators.
        frames: Latents of a window; None is the backbone's window.
        batch: Rows of a call that engines are tuned for, two to a window with guidance.
        height: Video height; None is the backbone's own.
        width: Video width; None is the backbone's own.
        dynamic: Which of ``batch`` and ``frames`` may vary from call to call.
        parts: Any of ``denoiser``, ``text`` and ``vae``.
        lora: A LoRA to merge into the denoiser first.
        lora_scale: How strongly.
        overwrite: Replace a folder that exists.
    """

    backbone: str
    output: Path
    precision: str = "fp32"
    opset: int = 23
    frames: int | None = None
    batch: int = 2
    height: int | None = None
    width: int | None = None
    dynamic: tuple[str, ...] = DYNAMIC
    parts: tuple[str, ...] = PARTS
    lora: Path | None = None
    lora_scale: float = 1.0
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what can be refused without a model.

        Raises:
            UserError: What is wrong, the rule, what to do.
        """
        if self.precision not in PRECISIONS:
            raise UserError(
                f"--precision {self.precision}: denoisers are exported in {', '.join(PRECISIONS)};"
                " fp16 and bf16 are for GPUs, bf16 for TensorRT"
            )
        if self.opset not in OPSETS:
            known = "; ".join(f"{opset} for {where}" for opset, where in OPSETS.items())
            raise UserError(f"--opset {self.opset} is not supported: there are {known}")
        if self.precision == "bf16" and self.opset < BF16_FROM:
            raise UserError(
                f"--precision bf16 with --opset {self.opset}: ONNX has bfloat16 convolutions from opset"
                f" {BF16_FROM} on; use --opset 23, or --precision fp16"
            )
        for option, given, names in (
            ("--dynamic", self.dynamic, DYNAMIC),
            ("--parts", self.parts, PARTS),
        ):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise UserError(f"{option} {unknown[0]}: it must be a list of {', '.join(names)}")
        if not self.parts:
            raise UserError(f"--parts is empty: name some of {', '.join(PARTS)}")
        for option, size, least in (
            ("--frames", self.frames, 2),
            ("--batch", self.batch, 1),
            ("--height", self.height, 1),
            ("--width", self.width, 1),
        ):
            if size is not None and size < least:
                raise UserError(f"{option} {size}: it must be at least {least}")
        if self.lora is not None and not self.lora.is_file():
            raise UserError(f"--lora {self.lora}: there is no such file")
        if not math.isfinite(self.lora_scale):
            raise UserError(f"--lora-scale {self.lora_scale:g}: it must be a finite number")
        if self.lora is None and self.lora_scale != 1:
            raise UserError(
                f"--lora-scale {self.lora_scale:g} is for --lora: give one, or leave it out"
            )
        check_output(self.output, self.overwrite)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that exists, unless it is an export to be replaced, or is no folder.

    Raises:
        UserError: It is so.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output} is a file: name a folder")
    if not (output.is_dir() and any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"-o {output} exists: add --force to replace it, or choose another -o")
    check_replaceable(output, _is_export(output), EXPORTED, "-o")


def check_replaceable(folder: Path, ours: bool, written: Sequence[str], option: str) -> None:
    """Refuse to replace, and so to delete, a folder that is not ours alone.

    Args:
        folder: What ``--force`` is to replace.
        ours: Whether it holds what we write there.
        written: Patterns of the files that we write, as they lie in it.
        option: What the user may change.

    Raises:
        UserError: It is not ours, holds something else too, or somebody works in it.
    """
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{option} {folder} is the folder you are in, or above it: name another")
    if not ours:
        raise UserError(
            f"--force replaces what an export wrote, and {folder} is not that: choose another {option}"
        )
    inside = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    others = sorted(
        path.as_posix()
        for path in inside
        if not any(
            path.parent == p.parent and fnmatch(path.name, p.name) for p in map(Path, written)
        )
    )
    if others:
        raise UserError(
            f"--force would delete {others[0]} in {folder}, which no export wrote: move it away, or choose"
            f" another {option}"
        )


def _is_export(folder: Path) -> bool:
    """Tell whether a folder says that it is an export; models have a file of that name, too."""
    try:
        content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"format", "weights_hash", "row_flops"} <= content.keys()
