"""The experiments that come with the package, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miga_bench.errors import UserError, near

FOLDER = Path(__file__).parents[1] / "experiments"


def experiments() -> list[str]:
    """Return the experiments that come with the package."""
    return sorted(path.stem for path in (FOLDER / "paper").glob("*.yaml"))


def places() -> list[str]:
    """Return the backbones that shipped experiments are set up for."""
    return sorted(path.stem for path in (FOLDER / "on").glob("*.yaml"))


def shipped(name: str, on: str) -> dict[str, Any]:
    """Return the whole configuration of a shipped experiment on a backbone.

    What differs between the embedded models and the public weights stands in the experiment's sections
    ``embedded`` and ``public``.

    Raises:
        UserError: There is no such experiment, or it is not set up for that backbone.
    """
    import yaml  # type: ignore[import-untyped]

    from miga_bench.backbones import BACKBONES
    from miga_bench.harness.configurations import merge

    if name not in experiments():
        raise UserError(f"unknown experiment {name!r}: {near(name, experiments())}")
    if on not in places():
        raise UserError(f"--on {on}: {near(on, places())}")
    place, experiment = (
        yaml.safe_load((FOLDER / folder / f"{stem}.yaml").read_text(encoding="utf-8"))
        for folder, stem in (("on", on), ("paper", name))
    )
    kinds = {kind: experiment.pop(kind, {}) for kind in ("embedded", "public")}
    experiment = merge(experiment, kinds["embedded" if BACKBONES[on].embedded else "public"])
    experiment["run"]["name"] = f"{name}-{on}"
    whole: dict[str, Any] = merge(place, experiment)
    return whole
