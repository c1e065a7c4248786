"""What ``miga-bench list`` shows."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import docstring_parser
from rich.table import Table

from miga_bench.backbones import BACKBONES
from miga_bench.harness.output import Output
from miga_bench.sampling import METHODS, PRESETS
from miga_bench.sampling.base import CommonSettings
from miga_bench.sampling.cards import markdown, tables
from miga_bench.sampling.presets import settings_class


def show(what: str, as_markdown: bool = False) -> None:
    """Print the methods, backbones or presets there are; the methods as Markdown if so wanted."""
    if as_markdown:
        print(markdown())
        return
    {"methods": _methods, "backbones": _backbones, "presets": _presets}[what]()


def _print(table: Table | str) -> None:
    Output(120).print(table)


def _methods() -> None:
    for headings, *body in tables():
        table = Table(*headings, show_lines=True)
        table.columns[0].no_wrap = True
        for row in body:
            table.add_row(*row)
        _print(table)
    table = Table(
        "method", "setting", "values", "what it is", title="settings, changed by --set NAME=VALUE"
    )
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    common = set(meanings(CommonSettings))
    kinds = {"all": CommonSettings} | {name: settings_class(m) for name, m in METHODS.items()}
    for name, kind in kinds.items():
        for setting, (values, meaning) in meanings(kind).items():
            if kind is CommonSettings or setting not in common:
                table.add_row(name, setting, values, meaning)
    _print(table)


def meanings(settings: type) -> dict[str, tuple[str, str]]:
    """Return, by name, what a setting may be and what it means, from its class's docstring.

    Args:
        settings: A method's settings, a dataclass.
    """
    told: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        for entry in docstring_parser.parse(kind.__doc__ or "").params:
            told[entry.arg_name] = " ".join((entry.description or "").split()).replace("``", "")
    hints = typing.get_type_hints(settings)
    return {name: (_values(hint), told[name]) for name, hint in hints.items()}


def _values(hint: Any) -> str:
    """Return a setting's type as a user would say it."""
    choices = typing.get_args(hint)
    if not choices:
        return {"int": "whole number", "float": "number", "bool": "true, false"}[hint.__name__]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, choices))
    return ", ".join(_values(choice) for choice in choices if choice is not type(None))


def _backbones() -> None:
    table = Table("backbone", "family", "what it is")
    for name, entry in BACKBONES.items():
        missing = isinstance(entry.where, Path) and not entry.where.is_dir()
        table.add_row(name, entry.family, entry.summary + (", not there yet" if missing else ""))
    _print(table)
    _print("or a folder with a model, or organization/repository on the Hugging Face Hub")


def _presets() -> None:
    for preset, families in PRESETS.items():
        for family, methods in families.items():
            names = list(dict.fromkeys(name for values in methods.values() for name in values))
            table = Table("setting", *methods, title=f"{preset} on the {family} family")
            for name in names:
                table.add_row(name, *(str(values.get(name, "")) for values in methods.values()))
            _print(table)
    _print("anchored: miga with a backbone's default preset and guidance_reach=anchor")
