"""The configuration that makes a run again, whatever presets and defaults become later."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from miga_bench.harness.results import Arm, Results


def configuration_of(run: Results) -> str:
    """Return the run's configuration as the YAML that makes it again."""
    whole = settled(run.configuration, run.arms, run.model.get("precision"))
    text: str = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
    return text


def settled(
    configuration: Mapping[str, Any], arms: Mapping[str, Arm], precision: str | None = None
) -> dict[str, Any]:
    """Return a run's configuration with what its presets and grids stood for when it was made.

    Args:
        configuration: As the run was begun with.
        arms: Of the run, by name.
        precision: That the videos were made in.
    """
    whole = copy.deepcopy(dict(configuration))
    trainer, model = whole.get("trainer"), whole.get("model")
    if isinstance(trainer, dict) and trainer.get("precision") is None and precision:
        trainer["precision"] = precision  # it was the machine's choice
    if not isinstance(model, dict):
        return whole
    full = {
        name: {"method": arm.method, "settings": dict(arm.settings)} for name, arm in arms.items()
    }
    if model.get("arms") or model.get("grid"):
        model.update(preset=None, settings=None, arms=full, grid=None)
    else:
        (only,) = full.values()
        model.update(preset=None, settings=only["settings"])
    return whole
