"""The runs and experiments that come with the package, by name."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError, near

FOLDER = Path(__file__).parents[1] / "experiments"
# those of miga_bench.sampling, which help does not wait for
METHODS = ("short", "fifo", "scaling-noise", "freelong", "freepca", "miga")


def _stems(folder: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / folder).glob("*.yaml"))


def _read(folder: str, stem: str) -> Any:
    import yaml  # type: ignore[import-untyped]

    return yaml.safe_load((FOLDER / folder / f"{stem}.yaml").read_text(encoding="utf-8"))


def runs() -> dict[str, tuple[str, str]]:
    """Return by name the backbone and the method of each run that comes with the package."""
    pairs = product(_stems("run"), METHODS)
    return dict(sorted((f"{backbone}-{method}", (backbone, method)) for backbone, method in pairs))


def run_of(name: str) -> dict[str, Any]:
    """Return the whole configuration of a shipped run.

    What methods that make one clip, or all latents at once, have otherwise stands in the sections
    ``one_clip`` and ``at_once`` of the backbone's file.

    Args:
        name: One of ``runs()``.
    """
    from miga_bench import sampling
    from miga_bench.harness.configurations import merge

    backbone, method = runs()[name]
    whole: dict[str, Any] = _read("run", backbone)
    for kind in ("one_clip", "at_once"):
        otherwise = whole.pop(kind, {})
        if getattr(sampling.METHODS[method], kind):
            whole = merge(whole, otherwise)
    return merge(whole, {"model": {"method": method}, "run": {"name": name}})


def experiments() -> list[str]:
    """Return the experiments that come with the package."""
    return _stems("paper")


def places() -> list[str]:
    """Return the backbones that shipped experiments are set up for."""
    return _stems("on")


def shipped(name: str, on: str) -> dict[str, Any]:
    """Return the whole configuration of a shipped experiment on a backbone.

    What differs between the embedded models and the public weights stands in the experiment's sections
    ``embedded`` and ``public``.

    Raises:
        UserError: There is no such experiment, or it is not set up for that backbone.
    """
    from miga_bench.backbones import BACKBONES
    from miga_bench.harness.configurations import merge

    if name not in experiments() and Path(name).is_file():
        raise UserError(f"{name} is a file, not a shipped experiment: give it as --config {name}")
    if name not in experiments():
        raise UserError(f"unknown experiment {name!r}: {near(name, experiments())}")
    if on not in places():
        raise UserError(f"--on {on}: {near(on, places())}")
    place, experiment = _read("on", on), _read("paper", name)
    kinds = {kind: experiment.pop(kind, {}) for kind in ("embedded", "public")}
    experiment = merge(experiment, kinds["embedded" if BACKBONES[on].embedded else "public"])
    experiment["run"]["name"] = f"{name}-{on}"
    whole: dict[str, Any] = merge(place, experiment)
    return whole
