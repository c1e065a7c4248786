"""What a run says of itself for its reports, held against what there is before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

from miga_bench.errors import UserError, near
from miga_bench.harness.report.published import published_tables
from miga_bench.sampling import METHODS
from miga_bench.sampling.presets import settings_class

NAMES = ("title", "question", "published", "axis", "baseline")


def check_about(
    about: Mapping[str, str | None], arms: Iterable[str], settings: Iterable[str] = ()
) -> None:
    """Refuse names that mean nothing to a report; null counts as not given.

    Args:
        about: ``run.about``.
        arms: Of the run; none where it is no experiment.
        settings: Names of the arms' settings, those of users' own methods among them.

    Raises:
        UserError: One is unknown.
    """
    ours = {f.name for method in METHODS.values() for f in fields(settings_class(method))}
    known = {
        "baseline": list(arms),
        "published": list(published_tables()),
        "axis": [*ours.union(settings), "frames"],
    }
    for name, value in about.items():
        if name not in NAMES:
            raise UserError(f"run.about has {name!r}: {near(name, NAMES)}")
        if value is None or name not in known or value in known[name]:
            continue
        if not known[name]:
            raise UserError(f"run.about.{name} is {value!r}: a run without arms has none")
        raise UserError(f"run.about.{name} is {value!r}: {near(str(value), known[name])}")
