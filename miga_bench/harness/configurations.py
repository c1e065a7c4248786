"""Configurations as files say them: read, and laid over one another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from miga_bench.errors import UserError


def read(file: str) -> Mapping[str, Any]:
    """Return what a configuration file says.

    Raises:
        UserError: It cannot be read, or is none.
    """
    try:
        document = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({(error.strerror or '').lower()}): check --config"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(document, Mapping):
        raise UserError(f"{file} is not a configuration: it has none of model, data, trainer, run")
    return document


def merge(before: Any, now: Any) -> Any:
    """Return ``before`` with ``now`` laid over it, mapping by mapping; another class replaces all."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)) or "class_path" in now:
        return now
    return {
        **before,
        **{k: merge(before[k], value) if k in before else value for k, value in now.items()},
    }
