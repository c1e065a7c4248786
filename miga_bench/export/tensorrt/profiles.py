"""Sizes that an engine takes, and which of its profiles a call runs on. Arithmetic only.

A graph's free sizes have names, ``batch`` and ``frames``; the shapes of all its inputs follow from
them. A profile gives each a least, a usual and a largest value.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miga_bench.errors import UserError
from miga_bench.export.sidecar import Port

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]
Range = tuple[int, int, int]

EXAMPLE = "batch=1:4:8,frames=2:21:21"


@dataclass(frozen=True)
class Profile:
    """The shapes of every input: least, usual (what it is tuned for) and largest."""

    inputs: dict[str, tuple[Shape, Shape, Shape]]

    @classmethod
    def of(cls, ports: Mapping[str, Port], ranges: Mapping[str, Range] | None = None) -> Profile:
        """Return the profile of a graph's inputs.

        Args:
            ports: The inputs, from the graph's sidecar.
            ranges: Least, usual and largest value of free sizes; the sidecar's own for those left out.
        """
        all_ranges = {**free_sizes(ports), **(ranges or {})}
        least, usual, most = ({k: v[i] for k, v in all_ranges.items()} for i in range(3))
        return cls(
            {
                name: (tuple(port.at(**least)), tuple(port.at(**usual)), tuple(port.at(**most)))
                for name, port in ports.items()
            }
        )

    @classmethod
    def parse(cls, text: str, ports: Mapping[str, Port]) -> Profile:
        """Return the profile that a user wrote, such as ``batch=1:4:8,frames=2:21:21``.

        Raises:
            UserError: It is not of that form, or names a size that is not free.
        """
        free = free_sizes(ports)
        ranges: dict[str, Range] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)(?::(\d+):(\d+))?\s*", part)
            if match is None:
                raise UserError(
                    f"--profile {text!r}: {part.strip()!r} is neither NAME=SIZE nor "
                    f"NAME=LEAST:USUAL:LARGEST; write it like {EXAMPLE}"
                )
            name, least = match[1], int(match[2])
            if name not in free:
                names = f"it has {', '.join(free)}" if free else "all its sizes are fixed"
                raise UserError(f"--profile {text!r}: the graph has no free size {name!r}: {names}")
            if name in ranges:
                raise UserError(f"--profile {text!r} gives {name} twice: give each size once")
            ranges[name] = (least, int(match[3] or least), int(match[4] or least))
            if not 1 <= ranges[name][0] <= ranges[name][1] <= ranges[name][2]:
                raise UserError(
                    f"--profile {text!r}: {name} needs 1 <= least <= usual <= largest, it has "
                    + ":".join(map(str, ranges[name]))
                )
        return cls.of(ports, ranges)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Profile:
        """Return a profile as it stands in a manifest."""
        return cls(
            {n: (tuple(s["min"]), tuple(s["opt"]), tuple(s["max"])) for n, s in content.items()}
        )

    def plain(self) -> dict[str, dict[str, list[int]]]:
        """Return it as it stands in a manifest."""
        return {
            name: {
                key: list(shape) for key, shape in zip(("min", "opt", "max"), sizes, strict=True)
            }
            for name, sizes in self.inputs.items()
        }

    def takes(self, shapes: Shapes) -> bool:
        """Return whether inputs of these shapes lie within it."""
        return all(
            len(shape) == len(self.inputs[name][0])
            and all(
                least <= size <= most
                for size, least, most in zip(
                    shape, self.inputs[name][0], self.inputs[name][2], strict=True
                )
            )
            for name, shape in shapes.items()
        )


def free_sizes(ports: Mapping[str, Port]) -> dict[str, Range]:
    """Return least, usual and largest value of every named size of a graph's inputs."""
    sizes: dict[str, Range] = {}
    for port in ports.values():
        for axis, size in enumerate(port.shape):
            if isinstance(size, str) and size.isidentifier():
                sizes.setdefault(size, (port.min[axis], port.opt[axis], port.max[axis]))
    return sizes


def fingerprint(profiles: Sequence[Profile]) -> str:
    """Return a hash of all sizes."""
    content = json.dumps([profile.plain() for profile in profiles], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def choose(profiles: Sequence[Profile], shapes: Shapes) -> int | None:
    """Return the number of the profile to run inputs of these shapes on; None if none takes them.

    Of several, the one that is tuned for just these shapes, else the one with the smallest largest
    sizes: what takes less was tuned more closely.
    """

    def looseness(number: int) -> tuple[bool, int]:
        inputs = profiles[number].inputs
        tuned = all(tuple(shape) == inputs[name][1] for name, shape in shapes.items())
        return not tuned, sum(math.prod(inputs[name][2]) for name in shapes)

    return min(
        (n for n, profile in enumerate(profiles) if profile.takes(shapes)),
        key=looseness,
        default=None,
    )


def rows_of_calls(profiles: Sequence[Profile], shapes: Shapes, batched: Sequence[str]) -> list[int]:
    """Return how many rows each engine call takes, so that all rows of a batch are done.

    One call where a profile takes the whole batch; otherwise as few as there can be, of sizes as even as
    there can be: equal calls share one plan.

    Args:
        profiles: The engine's.
        shapes: Of the inputs, whole batch.
        batched: The inputs whose first size is the batch.

    Raises:
        UserError: No profile takes the shapes, whatever the batch.
    """
    batch = shapes[batched[0]][0]
    for calls in range(1, batch + 1):
        rows = [batch // calls + (call < batch % calls) for call in range(calls)]
        if all(choose(profiles, with_rows(shapes, batched, n)) is not None for n in set(rows)):
            return rows
    raise UserError(_outside(profiles, shapes))


def with_rows(shapes: Shapes, batched: Sequence[str], rows: int) -> dict[str, Shape]:
    """Return the shapes that the inputs have when a call takes so many rows."""
    return {
        name: (rows, *shape[1:]) if name in batched else tuple(shape)
        for name, shape in shapes.items()
    }


def _outside(profiles: Sequence[Profile], shapes: Shapes) -> str:
    """Say which input lies outside, and of what."""
    for name, shape in shapes.items():
        if any(profile.takes({name: shape}) for profile in profiles):
            continue
        taken = ", or ".join(
            f"{_size(least)} to {_size(most)}" if least != most else _size(least)
            for least, _, most in (profile.inputs[name] for profile in profiles)
        )
        return (
            f"{name} is {_size(shape)}: the engine's profile takes {taken}; build one that takes it: "
            f"miga-bench export tensorrt DIR --profile {EXAMPLE}"
        )
    given = ", ".join(f"{name} {_size(shape)}" for name, shape in shapes.items())
    return (
        f"no single profile of the engine takes {given} together; build one that does: "
        f"miga-bench export tensorrt DIR --profile {EXAMPLE}"
    )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
