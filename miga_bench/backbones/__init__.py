"""What denoises: the model families behind one interface, and the table of their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import DoesNotFitError, UserError, is_out_of_memory, near

if TYPE_CHECKING:
    from miga_bench.backbones.base import Backbone

_TINY = Path(__file__).parent / "tiny" / "weights"


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone with a name.

    Attributes:
        family: ``wan`` or ``videocrafter2``.
        where: Its folder, or the id of its repository on the Hugging Face Hub.
        summary: One line for ``miga-bench list backbones``.
        changes: Defaults that its files do not hold.
        embedded: Whether it comes with the package.
    """

    family: str
    where: Path | str
    summary: str
    changes: dict[str, Any] = field(default_factory=dict)
    embedded: bool = False

    @property
    def preset(self) -> str:
        """The preset that methods use where none is named."""
        return "tiny" if self.embedded else "paper"


BACKBONES: dict[str, BackboneEntry] = {
    "tiny-wan": BackboneEntry(
        "wan",
        _TINY / "wan",
        "embedded Wan-family model of a procedural world, 64x64; comes with the package",
        {"height": 64, "width": 64},
        embedded=True,
    ),
    "wan2.1-1.3b": BackboneEntry(
        "wan",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan2.1 text-to-video, 1.3B parameters, 480x832; fetched from the Hugging Face Hub",
    ),
    "tiny-videocrafter2": BackboneEntry(
        "videocrafter2",
        _TINY / "videocrafter2",
        "embedded VideoCrafter2-family model of a procedural world, 64x64; comes with the package",
        {"height": 64, "width": 64},
        embedded=True,
    ),
    "videocrafter2": BackboneEntry(
        "videocrafter2",
        "VideoCrafter/VideoCrafter2",
        "VideoCrafter2 text-to-video, 1.4B parameters, 320x512; fetched from the Hugging Face Hub, "
        "weights for research only",
    ),
}
EMBEDDED = tuple(name for name, entry in BACKBONES.items() if entry.embedded)


def load_backbone(
    name_or_path: str | Path,
    *,
    device: str | None = None,
    dtype: Any = None,
    offload: bool = False,
    **changes: Any,
) -> Backbone:
    """Load a backbone by name, from a folder, or from a Hub repository.

    Args:
        name_or_path: A name in ``BACKBONES``, a folder with a diffusers pipeline or the original
            checkpoint files, VideoCrafter2's checkpoint, or ``organization/repository``.
        device: As torch names it; by default the GPU if there is one.
        dtype: Of the denoiser, for example ``bf16``; by default float32 on a CPU, on a GPU
            bfloat16 for Wan (float16 on one older than Ampere) and float16 for VideoCrafter2.
        offload: Bring networks to the GPU only while they are used.
        **changes: What the family's loader takes besides, for example ``height`` and ``width``.

    Raises:
        UserError: No such backbone, or its files are not usable.
    """
    name = str(name_or_path)
    return _load(entry_of(name), name, device, dtype, offload, changes)


def entry_of(name: str) -> BackboneEntry:
    """Return what is known of a backbone by its name, folder or Hub repository, nothing loaded.

    Raises:
        UserError: There is no such backbone.
    """
    entry = BACKBONES.get(name)
    if entry is None:
        where = _find(name)
        entry = BackboneEntry(_family(where), where, "")
    elif isinstance(entry.where, Path) and not entry.where.is_dir():
        raise UserError(
            f"{name} is not installed ({entry.where} is missing): train it by miga-bench train-tiny "
            f"--family {entry.family} and give the folder of its weights, or use tiny-wan"
        )
    return entry


def one_spelling(name: str) -> str:
    """Return a backbone's name, of a model in a folder the folder's whole path, however it was given."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in BACKBONES and path.exists() else name


def known_as(name: str, family: str) -> str:
    """Return what videos know a backbone by: its name, or only the family of a model in a folder or file.

    Such a model's hashes tell it from others. Where it lies decides nothing: jobs copy it to their own folders.
    """
    by_path = name not in BACKBONES and Path(name).expanduser().exists()
    return f"{family} from a path" if by_path else name


def _load(
    entry: BackboneEntry,
    name: str,
    device: str | None,
    dtype: Any,
    offload: bool,
    changes: dict[str, Any],
) -> Backbone:
    # Families are imported when used: listing names needs no torch.
    load: Callable[..., Backbone]
    if entry.family == "videocrafter2":
        from miga_bench.backbones.videocrafter2 import load_videocrafter2 as load
    else:
        from miga_bench.backbones.wan import load_wan as load

    given = {key: value for key, value in changes.items() if value is not None}
    options = {"device": device, "dtype": dtype, "offload": offload, **entry.changes, **given}
    try:
        backbone = load(entry.where, name=name, **options)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise DoesNotFitError(
            f"out of memory while {name} was loaded ({reason}): free some, or keep only the part in use on"
            " the GPU by --offload (model.offload)"
        ) from error
    backbone.preset = entry.preset
    return backbone


def _family(where: Path | str) -> str:
    """Tell the family by the names of files, or of the repository."""
    if isinstance(where, str):
        return "videocrafter2" if "videocrafter" in where.lower() else "wan"
    marks = (where / "unet", where / "model.ckpt")
    if where.suffix == ".ckpt" or any(mark.exists() for mark in marks):
        return "videocrafter2"
    return "wan"


def _find(name: str) -> Path | str:
    """Return the folder or the Hub repository a user means."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")):
        raise UserError(f"no such folder: {name}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    known = near(name, BACKBONES, 0.5, "there are")
    raise UserError(f"unknown backbone {name!r}: {known}, or give the folder of a model")
