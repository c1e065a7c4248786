"""What ``miga-bench list`` shows."""

from __future__ import annotations

import typing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from miga_bench.backbones import BACKBONES
from miga_bench.sampling import METHODS, PRESETS
from miga_bench.sampling.cards import markdown, tables
from miga_bench.sampling.presets import settings_class


def show(what: str, as_markdown: bool = False) -> None:
    """Print the methods, backbones or presets there are; the methods as Markdown if so wanted."""
    if as_markdown:
        print(markdown())
        return
    {"methods": _methods, "backbones": _backbones, "presets": _presets}[what]()


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 120).print(table)


def _methods() -> None:
    for headings, *body in tables():
        table = Table(*headings, show_lines=True)
        table.columns[0].no_wrap = True
        for row in body:
            table.add_row(*row)
        _print(table)
    table = Table("method", "settings", title="settings, each changed by --set NAME=VALUE")
    for name, method in METHODS.items():
        table.add_row(name, ", ".join(typing.get_type_hints(settings_class(method))))
    _print(table)


def _backbones() -> None:
    table = Table("backbone", "family", "what it is")
    for name, entry in BACKBONES.items():
        missing = isinstance(entry.where, Path) and not entry.where.is_dir()
        table.add_row(name, entry.family, entry.summary + (", not there yet" if missing else ""))
    _print(table)
    Console().print("or a folder with a model, or organization/repository on the Hugging Face Hub")


def _presets() -> None:
    for preset, families in PRESETS.items():
        for family, methods in families.items():
            names = list(dict.fromkeys(name for values in methods.values() for name in values))
            table = Table("setting", *methods, title=f"{preset} on the {family} family")
            for name in names:
                table.add_row(name, *(str(values.get(name, "")) for values in methods.values()))
            _print(table)
    Console().print("anchored: miga with a backbone's default preset and guidance_reach=anchor")
