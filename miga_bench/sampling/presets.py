"""Presets: named, complete sets of a method's settings on a backbone.

``paper`` is what the MIGA paper describes (arXiv 2605.18233, section 4.1; FIFO: arXiv 2405.11473);
``release`` what the authors' code does, quirks included; ``anchored`` is ours: the backbone's default preset
with guidance frames kept for the whole video; ``tiny`` is tuned for the embedded models. Where paper and
release are silent (FIFO on Wan), the number of steps is MIGA's. On VideoCrafter2 ``paper`` applies the
dynamic rescale the network was trained with; the released code leaves it out in its queues, but not in its
opening clip.

Two choices of ``paper`` for MIGA. It has no re-noise pass (``renoise`` 0): the paper's algorithm 5 ends with
stage 2, and without the pass MIGA takes 1.00 times FIFO's windows for each further frame of VideoCrafter2, as
its seconds in the paper are 1.01 times FIFO's (7.53 to 7.48); with the pass it would be 1.16. And its guidance
frames are those of the released code (``guidance_reach`` chunks), on which paper and code disagree; those of
the paper's formula are ``head``. On Wan stage 2 has the released code's 10 steps; the paper, whose latents
leave one level below tau_e = 10, can be read as 9.

``release`` follows the released loops, but not all of their changes inside Wan's network: there, its last
layer shifts and scales all slots of a window as the first one; ours takes each slot's own level.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from miga_bench.errors import UserError, near
from miga_bench.sampling.base import CommonSettings, Sampler
from miga_bench.sampling.fifo import Fifo
from miga_bench.sampling.freelong import FreeLong
from miga_bench.sampling.freepca import FreePca
from miga_bench.sampling.miga import Miga
from miga_bench.sampling.preset_values import PRESETS, Values
from miga_bench.sampling.rules import check_common
from miga_bench.sampling.scaling_noise import ScalingNoise
from miga_bench.sampling.short import Short

METHODS: dict[str, type[Sampler]] = {
    "short": Short,
    "fifo": Fifo,
    "scaling-noise": ScalingNoise,
    "freelong": FreeLong,
    "freepca": FreePca,
    "miga": Miga,
}


class ModelKind(Protocol):
    """What of a model decides a method's settings; it is known before the model is loaded."""

    @property
    def family(self) -> str:
        """``wan`` or ``videocrafter2``."""

    @property
    def preset(self) -> str:
        """The preset that is used where none is named."""


def preset_values(method: str, family: str, preset: str, default: str) -> Values:
    """Return a preset's settings as they stand in the table.

    Raises:
        UserError: The preset is unknown, or has no settings for this method and family.
    """
    named = default if preset == "anchored" else preset
    if named not in PRESETS:
        raise UserError(f"unknown preset {named!r}: {near(named, {*PRESETS, 'anchored'})}")
    table = PRESETS[named]
    if family not in table or method not in table[family]:
        raise UserError(
            f"preset {preset!r} has no settings for {method} on the {family} family; it has "
            + "; ".join(f"{f}: {', '.join(m)}" for f, m in table.items())
        )
    values = table[family][method]
    if preset != "anchored":
        return values
    if method != "miga":
        raise UserError(f"preset 'anchored' is for miga, not {method}: leave --preset out")
    return {**values, "guidance_reach": "anchor"}


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Return a field's type without None, and whether it may be None: left to the backbone."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    inner = [one for one in typing.get_args(kind) if one is not type(None)]
    return (inner[0], True) if len(inner) == 1 else (kind, False)


def _parse(name: str, value: object, kind: Any) -> Any:
    """Turn a setting's value into its field's type, with one rule for text and for what YAML makes of it."""
    kind, optional = _without_none(kind)
    if value is None:
        if not optional:
            raise UserError(f"{name} is None: give it a value, or leave it out")
        return None
    text = str(value)
    if kind is str:
        return text
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    word = text.strip().lower()
    if choices:
        known = {str(choice).lower(): choice for choice in choices}
        if word not in known:  # YAML reads on and off as true and false
            word = {"true": "on", "false": "off"}.get(word, word)
        if (name, word) == ("reflection", "on") and word not in known:
            word = "continuous"
        if word not in known:
            raise UserError(
                f"{name} is {text[:40]!r}: it must be one of {', '.join(map(str, choices))}"
            )
        return known[word]
    if kind is bool:
        words = dict.fromkeys(("true", "on", "yes", "1"), True) | dict.fromkeys(
            ("false", "off", "no", "0"), False
        )
        if word not in words:
            raise UserError(f"{name} is {text[:40]!r}: it must be true or false")
        return words[word]
    try:
        number = kind(word)
        finite = math.isfinite(number)
    except (ValueError, OverflowError):
        finite = False
    if not finite:
        rule = "a whole number" if kind is int else "a finite number"
        raise UserError(f"{name} is {text[:40]!r}: it must be {rule}")
    return number


def resolve(
    method: str,
    model: ModelKind,
    preset: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Any:
    """Return a method's complete settings on a model.

    A method of the user's own has no preset: its settings begin as its dataclass has them, and those that every
    method has as the preset has them for the plain clip, unless the dataclass has a default of its own.

    Args:
        method: A name in ``METHODS``, or the import path of a sampler of one's own.
        model: The backbone, or what is known of it before it is loaded.
        preset: A name, or None for the model's default.
        overrides: Settings to change, values as text or as the field's type; ``reflection`` may be false.

    Raises:
        UserError: A name is unknown, a value is not of its setting's type, or one that every method has is
            out of range.
    """
    settings_type = settings_class(method_class(method))
    hints, known = typing.get_type_hints(settings_type), dataclasses.fields(settings_type)
    kinds = {field.name: hints[field.name] for field in known if field.init}
    if method in METHODS:
        values = dict(preset_values(method, model.family, preset or model.preset, model.preset))
    else:
        _check_kinds(method, kinds)
        values = _as_plain(settings_type, model, preset)
    for name, value in (overrides or {}).items():
        if name not in kinds:
            raise UserError(f"{method} has no setting {name!r}: {near(name, kinds)}")
        values[name] = _parse(name, value, kinds[name])
    open_still = [
        field.name
        for field in known
        if field.name not in values
        and dataclasses.MISSING is field.default is field.default_factory
    ]
    if open_still:
        raise UserError(f"{method} has no value for {', '.join(open_still)}: give it as a setting")
    settings = settings_type(**values)
    check_common(settings, None)  # what needs no weights to be seen is seen before they are fetched
    return settings


def method_class(method: str) -> type[Sampler]:
    """Return a method's class: one of ours by its name, one of the user's by its import path, ``mine.Waves``.

    Raises:
        UserError: There is none, or it is no sampler.
    """
    if method in METHODS:
        return METHODS[method]
    module, _, name = method.rpartition(".")
    if not module:
        raise UserError(f"unknown method {method!r}: {near(method, METHODS)}")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's may fail in any way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"method {method!r} cannot be imported ({reason}): give module.Class, with the module in this"
            " folder or in PYTHONPATH"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Sampler)) or inspect.isabstract(found):
        raise UserError(
            f"method {method!r} is no sampler: give a class that is made of miga_bench.sampling.Sampler and"
            " has a stream"
        )
    return found


def code_hash(method: str) -> str | None:
    """Return the SHA-256 of the file that a sampler of the user's own is in; None for ours.

    Who edits it wants its videos made again. What it imports is not looked at.
    """
    return None if method in METHODS else source_hash(method_class(method))


def source_hash(kind: type) -> str | None:
    """Return the SHA-256 of the file that a class is in, None if there is none."""
    try:
        path = inspect.getsourcefile(kind)
        return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()
    except (OSError, TypeError):  # without a file, as in a notebook
        return None


def settings_class(method: type[Sampler]) -> Any:
    """Return the dataclass of a method's settings: what ``Sampler[...]`` names, in the class or above it."""
    for kind in method.__mro__:
        for base in kind.__dict__.get("__orig_bases__", ()):
            for named in typing.get_args(base):
                if isinstance(named, type) and issubclass(named, CommonSettings):
                    return named
    return CommonSettings


def _check_kinds(method: str, kinds: Mapping[str, Any]) -> None:
    """Refuse settings of types that neither YAML nor a key can hold."""
    for name, hint in kinds.items():
        kind, _ = _without_none(hint)
        if kind not in (bool, int, float, str) and typing.get_origin(kind) is not typing.Literal:
            raise UserError(
                f"{method}: its setting {name} is a {hint}: make it a bool, int, float, str or Literal, or one"
                " of them or None"
            )


def _as_plain(settings_type: Any, model: ModelKind, preset: str | None) -> dict[str, Any]:
    """Return the common settings of the plain clip that a dataclass does not set itself."""
    if preset is None and model.family not in PRESETS.get(model.preset, {}):
        return {}  # a family of the user's own
    plain = preset_values("short", model.family, preset or model.preset, model.preset)
    common = {field.name: field.default for field in dataclasses.fields(CommonSettings)}
    return {
        field.name: plain[field.name]
        for field in dataclasses.fields(settings_type)
        if field.name in plain and field.default == common[field.name]
    }
