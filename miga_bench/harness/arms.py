"""The arms of an experiment: ways to make the same videos, named one by one or spanned by a grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from miga_bench.errors import UserError, near
from miga_bench.harness.names import NAME, NAME_RULE

FIELDS = ("method", "preset", "settings")


@dataclass(frozen=True)
class ArmPlan:
    """How an arm's videos are made, before the backbone is known.

    Attributes:
        method: The method's name, or the import path of a sampler of the user's own.
        preset: A named set of its settings; None is the backbone's default.
        settings: Single settings, as text.
    """

    method: str
    preset: str | None
    settings: Mapping[str, str | None]


def expand(
    base: ArmPlan,
    arms: Mapping[str, Mapping[str, Any] | None] | None,
    grid: Mapping[str, Sequence[Any]] | None,
) -> dict[str, ArmPlan]:
    """Return the arms by name, first the named ones, then the grid's.

    A named arm is the base with other values laid over it; one with a method of its own takes none of the
    base's settings, which belong to the base's method. A grid varies the base: every combination is an arm,
    called after its values, ``zigzag-2`` or ``zigzag-2.guidance_frames-4``.

    Args:
        base: What the arms are changes of.
        arms: By name, each with any of method, preset and settings.
        grid: Values by setting.

    Raises:
        UserError: A name or a field is wrong, or there is no arm at all.
    """
    if not (arms or grid) or (grid is not None and not grid):
        raise UserError("the experiment is empty: give model.arms or model.grid at least one entry")
    out = {
        name: _named(base, name, {} if change is None else change)
        for name, change in (arms or {}).items()
    }
    if grid is not None:
        for name, values in grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise UserError(
                    f"model.grid.{name} is {values!r}: a list of values is wanted, like [1, 2, 4]"
                )
        for values in product(*grid.values()):
            varied = {name: as_text(value) for name, value in zip(grid, values, strict=True)}
            name = ".".join(f"{setting}-{value}" for setting, value in varied.items())
            if name in out:
                raise UserError(f"model has the arm {name!r} twice: leave one out")
            _check_name(name)
            out[name] = ArmPlan(base.method, base.preset, {**base.settings, **varied})
    folders: dict[str, str] = {}
    for name in out:
        # file systems may not tell upper from lower case
        if folders.setdefault(name.lower(), name) != name:
            raise UserError(
                f"the arms {folders[name.lower()]!r} and {name!r} differ in case only: rename one"
            )
    return out


def method_name(method: object, where: str) -> str:
    """Return the name of a method, or its class's import path, also where it is given as ``class_path``.

    Args:
        method: As a configuration has it.
        where: The option, for the message.

    Raises:
        UserError: It is neither.
    """
    if isinstance(method, Mapping) and set(method) == {"class_path"}:
        method = method["class_path"]
    if not isinstance(method, str):
        raise UserError(
            f"{where} is {method!r}: a name is wanted, or class_path alone, whose settings stand in settings"
        )
    if "." in method and not NAME.fullmatch(method):
        raise UserError(f"{where} {method!r} cannot name an arm: {NAME_RULE}")
    return method


def as_text(value: object) -> str | None:
    """Return a setting's value as text, so that 5 and 5.0 are the same and a wrong type is found."""
    return None if value is None else str(value)


def _named(base: ArmPlan, name: str, change: object) -> ArmPlan:
    _check_name(name)
    if not isinstance(change, Mapping):
        raise UserError(
            f"model.arms.{name} is {change!r}: a mapping is wanted, {', '.join(FIELDS)}"
        )
    for field in change:
        if field not in FIELDS:
            raise UserError(f"model.arms.{name} has {field!r}: {near(str(field), FIELDS)}")
    settings = change.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"model.arms.{name}.settings is {settings!r}: settings by name are wanted")
    if not isinstance(change.get("preset", ""), str):
        raise UserError(f"model.arms.{name}.preset is {change['preset']!r}: a name is wanted")
    method = method_name(change.get("method", base.method), f"model.arms.{name}.method")
    own = {str(setting): as_text(value) for setting, value in settings.items()}
    inherited = base.settings if method == base.method else {}
    return ArmPlan(method, change.get("preset", base.preset), {**inherited, **own})


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or re.search(r"\.\.", name):
        raise UserError(f"the arm {name!r} cannot name a folder: {NAME_RULE}")
