"""The notes that MLflow shows of a run and of its arms."""

from __future__ import annotations

from collections.abc import Sequence

from miga_bench.harness.results import Results
from miga_bench.harness.tracking.facts import ArmFacts

NOTED = ("cost/nfe_per_frame", "cost/seconds_per_frame")  # that stand beside the scores


def note(results: Results, arms: Sequence[ArmFacts]) -> str:
    """Return what a reader sees first: title, question, and the arms' scores as a table."""
    about = results.about
    lines = [f"### {about.get('title') or results.name}"]
    if about.get("question"):
        lines += ["", str(about["question"])]
    measured = sorted({key for arm in arms for key in arm.metrics if key.startswith("scores/")})
    shown_too = [key for key in NOTED if any(key in arm.metrics for arm in arms)]
    if measured:
        lines += ["", "| | " + " | ".join(arm.arm.name for arm in arms) + " |"]
        lines += ["|---" * (len(arms) + 1) + "|"]
        for key in [*measured, *shown_too]:
            label = key.partition("/")[2].replace("_", " ")
            lines.append(f"| {label} | " + " | ".join(_cell(arm, key) for arm in arms) + " |")
        lines += ["", "Mean +- standard error, clustered by prompt."]
    return "\n".join(lines)


def arm_note(arm: ArmFacts) -> str:
    """Return what is different in an arm."""
    changed = ", ".join(f"{name} = {value}" for name, value in arm.arm.changed.items())
    return f"**{arm.arm.name}**: {changed or 'method = ' + arm.arm.method}"


def _cell(arm: ArmFacts, key: str) -> str:
    mean = arm.metrics.get(key)
    kind, _, name = key.partition("/")
    error = arm.metrics.get(f"{kind}_standard_error/{name}")  # costs have none
    if mean is None:
        return ""
    return f"{mean:.3g}" + ("" if error is None else f" +- {error:.1g}")
