"""Configurations as files say them: read, and laid over one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from miga_bench.errors import UserError

MOST_VALUES = 1_000_000
LONGEST = 200


def read(file: str) -> Mapping[str, Any]:
    """Return what a configuration file says.

    Raises:
        UserError: It cannot be read, or is none.
    """
    try:
        document = yaml_of(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({(error.strerror or '').lower()}): check --config"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not YAML ({error}): check it") from None
    if not isinstance(document, Mapping) or not all(isinstance(name, str) for name in document):
        raise UserError(
            f"{file} is not a configuration: give a mapping of any of model, data, trainer, run, tracking"
        )
    return document


def yaml_of(text: str) -> Any:
    """Return what a YAML text says, as plain values: nothing in it is run.

    Raises:
        ValueError: It is none, or holds what only YAML can say; in few words.
    """
    try:
        document = yaml.safe_load(text)
        # a mapping within itself, or aliases that unfold to gigabytes, are no plain values
        _count(document, 0)
    except RecursionError:
        raise ValueError("nested without end") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ValueError(text[:LONGEST]) from None
    except Exception as error:  # of values that look like dates or numbers and are none
        raise ValueError(f"{type(error).__name__} at a value: {error}"[:LONGEST]) from None
    return document


def _count(part: Any, so_far: int) -> int:
    """Return how many values a document has, each as often as an alias names it."""
    so_far += 1
    if so_far > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    if isinstance(part, Mapping):
        for name, value in part.items():
            so_far = _count(value, _count(name, so_far))
    elif isinstance(part, list | tuple | set):
        for value in part:
            so_far = _count(value, so_far)
    return so_far


def laid_over(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return configurations as one, each laid over the ones before it."""
    whole: Any = {}
    for part in parts:
        whole = merge(whole, part)
    return dict(whole)


def as_option(whole: Mapping[str, Any]) -> list[str]:
    """Return a configuration as Lightning's command line takes it."""
    # as one text: Lightning would replace all settings where a later file has one, and names no file in errors
    return ["--config", yaml.safe_dump(dict(whole), sort_keys=False)]


def merge(before: Any, now: Any) -> Any:
    """Return ``before`` with ``now`` laid over it, mapping by mapping; another class replaces all."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)) or "class_path" in now:
        return now
    return {
        **before,
        **{k: merge(before[k], value) if k in before else value for k, value in now.items()},
    }
