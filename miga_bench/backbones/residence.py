"""What all families do alike: where networks live, what they compute in, which defaults hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miga_bench.backbones.checkpoint import read_json
from miga_bench.errors import UserError

DefaultsT = TypeVar("DefaultsT")

SIDE_FILE = "backbone.json"

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


class Residence:
    """Which of a backbone's networks are on the device: all, or with offloading one at a time."""

    def __init__(self, device: torch.device, offload: bool) -> None:
        self.device = device
        self.offload = offload
        self._parts: list[nn.Module] = []
        self._kept: dict[nn.Module, list[Tensor]] = {}  # weights at home of the part that is away

    @property
    def home(self) -> torch.device:
        """Where a network waits until it is used."""
        return torch.device("cpu") if self.offload else self.device

    def add(self, part: nn.Module) -> None:
        """Take charge of a network that is at home."""
        self._parts.append(part)

    def bring(self, part: nn.Module | None) -> torch.device:
        """Make sure a network is on the device, and with offloading no other; return the device."""
        if self.offload:
            for other in self._parts:
                if other is not part:
                    self._take_home(other)
            if part is not None and part not in self._kept:
                self._kept[part] = [weight.data for weight in part.parameters()]
                part.to(self.device)
        return self.device

    def _take_home(self, part: nn.Module) -> None:
        """Give a network the weights it left at home: nothing writes to them, so none are copied back."""
        kept = self._kept.pop(part, [])
        for weight, at_home in zip(part.parameters(), kept, strict=bool(kept)):
            weight.data = at_home
        part.to(self.home)  # what is no weight


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the device a user names; None is the GPU if there is one.

    Raises:
        UserError: It is unknown or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; there are cpu, cuda, cuda:1, ...") from None
    if place.type != "cpu" and (place.index or 0) >= _count(place.type):
        seen = ["cpu", *(f"{kind}:{n}" for kind in ("cuda", "mps") for n in range(_count(kind)))]
        raise UserError(f"device {place} is not there: this machine has {', '.join(seen)}")
    return place


def _count(kind: str) -> int:
    """Return how many devices of a kind this machine has; torch knows kinds it was not built with."""
    module: Any = getattr(torch, kind, None)  # torch.cuda, torch.mps, torch.xpu, ...
    there = kind != "mps" or torch.backends.mps.is_available()
    return module.device_count() if there and hasattr(module, "device_count") else 0


def pick_dtype(
    dtype: str | torch.dtype | None, place: torch.device, family: str = "wan"
) -> torch.dtype:
    """Return the type a user names; None is the family's half precision on a GPU, float32 on a CPU.

    VideoCrafter2's guidance of 12 magnifies rounding, of which float16, three bits finer, has an eighth of
    bfloat16's. Wan's authors sample in bfloat16.

    Raises:
        UserError: It is unknown.
    """
    if dtype is None:
        if place.type != "cuda":
            return torch.float32
        # older ones only emulate bfloat16, and their attention then holds all scores at once
        has_bfloat16 = torch.cuda.get_device_capability(place) >= (8, 0)
        return torch.bfloat16 if has_bfloat16 and family == "wan" else torch.float16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; there are {', '.join(DTYPES)}")
    return DTYPES[dtype]


def join_defaults(
    kind: type[DefaultsT], found: Mapping[str, Any], root: Path, changes: Mapping[str, Any]
) -> DefaultsT:
    """Join what the files of a model say, its ``backbone.json``, and what the caller wants.

    Args:
        kind: Dataclass of a family's defaults; its own hold where nobody says otherwise.
        found: What other files of the model say.
        root: The model's folder; it may hold a ``backbone.json``.
        changes: What the caller wants; None is ignored.

    Raises:
        UserError: There is no such default.
    """
    side = root / SIDE_FILE
    asked = {key: value for key, value in changes.items() if value is not None}
    filed = {**found, **(read_json(side) if side.exists() else {})}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for where, names in (("the backbone's options", asked), (f"{side}", filed)):
        unknown = [key for key in names if key not in known]
        if unknown:
            raise UserError(f"{where}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return kind(**{**filed, **asked})
