"""Suites of narratives by name, which are prompts to make videos of and questions to score them by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from miga_bench.prompts import STORIES

if TYPE_CHECKING:
    from miga_bench.metrics.narrlv import Suite


def open_suite(narratives: str) -> Suite:
    """Return a suite by its name, folder or file.

    Raises:
        UserError: It cannot be read.
    """
    from miga_bench.metrics.narrlv import fetch_release, load_suite

    if narratives == "release":
        return load_suite(fetch_release())
    return load_suite(STORIES.get(narratives, Path(narratives)))
