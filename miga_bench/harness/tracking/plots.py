"""Two small figures for a tracked run: scores over the videos, and when self-reflection acted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miga_bench.harness.tracking.facts import ArmFacts

WIDTH, HEIGHT = 7.0, 2.4  # inches, of each panel
GRID = "#dddddd"


def drift_plot(arms: Sequence[ArmFacts], path: Path) -> bool:
    """Draw each score over the frames, a line per arm; return whether there was something to draw."""
    names = sorted({name for arm in arms for name in arm.curves if name.startswith("drift/")})
    if not names:
        return False
    figure, panels = _figure(len(names))
    for panel, name in zip(panels, names, strict=True):
        for arm in arms:
            if points := arm.curves.get(name):
                steps, values = zip(*points, strict=True)
                panel.plot(steps, values, label=arm.arm.name, linewidth=1.6, marker=".")
        panel.set_title(name.removeprefix("drift/").replace("_", " "), loc="left", fontsize=10)
    panels[-1].set_xlabel("frame")
    panels[0].legend(fontsize=8, frameon=False, ncols=4)
    figure.savefig(path, dpi=110)
    return True


def reflection_plot(arm: ArmFacts, path: Path) -> bool:
    """Draw similarity over the judged passes, triggers and acceptances as ticks below it."""
    points = arm.curves.get("reflection_over_passes/similarity")
    if not points:
        return False
    figure, (panel,) = _figure(1)
    panel.plot(*zip(*points, strict=True), linewidth=1.4, color="#4269d0", label="similarity")
    bottom = min(value for _, value in points)
    for name, color, marker in (("triggered", "#ff725c", "v"), ("accepted", "#3ca951", "^")):
        there = [s for s, rate in arm.curves[f"reflection_over_passes/{name}"] if rate]
        panel.plot(there, [bottom] * len(there), marker, color=color, label=name, linestyle="")
    panel.set_title(f"self-reflection of {arm.arm.name}, all videos", loc="left", fontsize=10)
    panel.set_xlabel("judged pass")
    panel.legend(fontsize=8, frameon=False, ncols=3)
    figure.savefig(path, dpi=110)
    return True


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT * panels), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0]
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
