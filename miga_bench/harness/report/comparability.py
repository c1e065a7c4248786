"""Can a run's scores be set beside the paper's? Only arms that the published table has are looked at.

What we chose where the paper is silent, or where its text and its code differ, makes nothing incomparable: it
is named beside. ``CHOICES`` has it all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from miga_bench.backbones import BACKBONES
from miga_bench.harness.arms import ArmPlan, as_text, expand
from miga_bench.harness.report.measures import Measure
from miga_bench.harness.report.published import PublishedTable
from miga_bench.harness.report.scoring import how_many_prompts, how_scored
from miga_bench.harness.results import Arm, Results
from miga_bench.harness.shipped import experiments, places, shipped
from miga_bench.sampling.presets import resolve

NAMED = 6  # settings that a sentence names
NO_MATTER = ("batch",)  # how many windows share a call changes no video
AUTHORS_PRECISION = {"videocrafter2": "32-true"}
QUEUES = ("fifo", "scaling-noise", "miga")
REENCODED = (
    "clips scored as they are, where VBench-Long encodes them anew before: in the embedded world that takes"
    " 0.39 from motion smoothness and 0.30 from temporal flickering (x 100, on average)"
)
# What VBench's CLIP has a part in.
BY_CLIP = ("background_consistency", "overall_score", "aesthetic_quality")
HALF = "CLIP in float32, where VBench's is in float16 on a GPU ({})"
# The family of the model, which arms have made the choice, and the words.
CHOICES: Sequence[tuple[str, Callable[[Arm], bool], str]] = (
    (
        "videocrafter",
        lambda arm: arm.method in QUEUES and arm.settings.get("rescale") is not False,
        "queues with VideoCrafter2's dynamic rescale, which no author's queue has",
    ),
    (
        "",
        lambda arm: arm.method == "miga" and not arm.settings.get("renoise"),
        "MIGA without the re-noise pass of its code",
    ),
    (
        "",
        lambda arm: (
            bool(arm.settings.get("guidance_frames"))
            and arm.settings.get("guidance_reach") == "chunks"
        ),
        "guidance frames by the chunks of its code, not by the paper's formula",
    ),
    (
        "wan",
        lambda arm: arm.method == "miga" and arm.settings.get("stage2_steps") == 10,
        "10 steps in stage 2, as its code, where the paper may mean 9",
    ),
)


def paper_backbones(run: Results, table: PublishedTable) -> list[str]:
    """Return the paper's models to show beside a run: those of its family, or all."""
    name = str(run.model["backbone"]).lower()
    family = next((word for word in ("videocrafter", "wan") if word in name), None)
    mine = [b for b in table.backbones() if family is not None and family in b]
    return mine or table.backbones()


def comparability(run: Results, paper: PublishedTable, columns: Sequence[Measure]) -> str:
    """Say whether a run's scores can be set against the paper's, and why not."""
    out = []
    for backbone in paper_backbones(run, paper):
        why = why_not_comparable(run, paper, backbone, columns)
        out.append(
            f"Not comparable with {backbone} as printed: {'; '.join(why)}."
            if why
            else f"Made as {backbone} was, as far as the paper says."
        )
        ours = our_choices(run, paper, backbone, columns)
        if run.model["backbone"] == backbone and ours:
            out.append(f"Ours where the paper is silent or its code differs: {'; '.join(ours)}.")
    return " ".join([*out, f"Paper: {paper.conditions}."])


def our_choices(
    run: Results, table: PublishedTable, backbone: str, measures: Sequence[Measure]
) -> list[str]:
    """Return what we chose where the paper leaves it open, as far as the run's arms of the table have it.

    Of the scoring it is what touches a measure that the table has, too.
    """
    arms = [arm for name, arm in run.arms.items() if name in table.of(backbone)]
    out = [
        words
        for family, chosen, words in CHOICES
        if family in backbone and any(chosen(arm) for arm in arms)
    ]
    if table.toolkit == "vbench-long" and arms:
        seeds = len({row.seed for arm in arms for row in run.of(arm.name)})
        ours, theirs = ("its own", "") if run.dimensions else ("all", "each on its own prompts, ")
        out.append(
            f"every score on {ours} prompts with {seeds} seed{'s' * (seeds > 1)} each and no static filter,"
            f" where VBench-Long can take {theirs}five videos a prompt, flickering on still ones alone"
        )
        shown = [measure for measure in measures if measure.column in table.columns]
        if shown:
            out.append(REENCODED)
        by_clip = [m.title for m in shown if m.base in BY_CLIP and not m.networks]
        if by_clip:
            out.append(HALF.format(", ".join(by_clip)))
    return out


def why_not_comparable(
    run: Results, table: PublishedTable, backbone: str, measures: Sequence[Measure]
) -> list[str]:
    """Return what is not as in the paper; nothing if the numbers can be set side by side."""
    arms = [arm for name, arm in run.arms.items() if name in table.of(backbone)]
    if not arms:
        return ["no arm of the run is in the paper's table"]
    out = []
    if run.model["backbone"] != backbone:
        out.append(f"the model is {run.model['backbone']}, the paper's is {backbone}")
    told = [m.networks.split(",") for m in measures if m.column in table.columns and m.networks]
    networks = sorted({name for names in told for name in names})
    if networks:
        out.append(f"the scores are by networks {', '.join(networks)}, not VBench's own")
    if any(m.column in table.columns for m in measures):
        out += how_scored(run, table)
        out += how_many_prompts(run, table, [arm.name for arm in arms])
    done = [row for arm in arms for row in run.of(arm.name) if row.status == "done"]
    frames, theirs = sorted({row.frames for row in done}), table.frames.get(backbone)
    if theirs is not None and frames != [theirs]:
        ours = " or ".join(map(str, frames)) or "no"
        out.append(f"the videos have {ours} frames, the paper's {theirs}")
    size = tuple(run.model.get(name) for name in ("height", "width"))
    if None not in size and size != table.sizes.get(backbone, size):
        height, width = table.sizes[backbone]
        out.append(f"the videos have {size[1]} x {size[0]} pixels, the paper's {width} x {height}")
    precision = run.model.get("precision")
    if precision is not None and precision != AUTHORS_PRECISION.get(backbone, precision):
        out.append(f"computed in {precision}, by its authors in {AUTHORS_PRECISION[backbone]}")
    return out + _other_settings(arms, _paper_arms(table.key, backbone))


def _other_settings(arms: Sequence[Arm], paper: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return in which settings arms are not what the paper's are; alike ones are told together."""
    who: dict[str, list[str]] = {}
    for arm in arms:
        theirs = paper.get(arm.name, {})
        ours = {**arm.settings, "method": arm.method}
        for name, value in theirs.items():
            if name in ours and name not in NO_MATTER and ours[name] != value:
                what = f"{name} {_said(ours[name])}, not {_said(value)}"
                who.setdefault(what, []).append(arm.name)
    told = [f"{what} ({', '.join(names)})" for what, names in who.items()]
    more = [f"{len(told) - NAMED} more"] if len(told) > NAMED else []
    return [f"other settings: {', '.join(told[:NAMED] + more)}"] if told else []


def _said(value: object) -> str:
    return "unset" if value is None else str(value)


@functools.cache
def _paper_arms(key: str, backbone: str) -> dict[str, dict[str, Any]]:
    """Return by arm the method and all settings that the shipped experiment of a table has on a model."""
    out: dict[str, dict[str, Any]] = {}
    for name in experiments() if backbone in places() else ():
        whole = shipped(name, backbone)
        if whole["run"]["about"].get("published") != key:
            continue
        told = whole["model"]
        settings = {k: as_text(v) for k, v in (told.get("settings") or {}).items()}
        base = ArmPlan(told["method"], "paper", settings)
        for arm, plan in expand(base, told.get("arms"), told.get("grid")).items():
            if plan.preset == "paper":
                values = resolve(plan.method, BACKBONES[backbone], plan.preset, plan.settings)
                out[arm] = {"method": plan.method, **dataclasses.asdict(values)}
    return out
