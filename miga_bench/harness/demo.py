"""The demo: all methods, same prompts and seeds, on an embedded model; pictures and a table.

The world the model was trained on is known, so a reader can say of every frame what it shows. The
table is what the reader says; nothing in it is decided beforehand.
"""

from __future__ import annotations

import functools
import math
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.backbones.memory import free_bytes
from miga_bench.backbones.tiny.drift import measure
from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.backbones.tiny.world import draw_look, render
from miga_bench.errors import UserError
from miga_bench.harness.bars import Bars, PlainLines
from miga_bench.harness.bench.common import usable_cores
from miga_bench.harness.files import write_json
from miga_bench.harness.generate import generate
from miga_bench.harness.output import Output
from miga_bench.harness.pool import each_done
from miga_bench.harness.provenance import hardware, versions
from miga_bench.harness.report.measures import Measure, measure_of
from miga_bench.harness.request import GenerateRequest, PromptAt, check_writable
from miga_bench.harness.video import Watcher
from miga_bench.media import Cell, SideBySide, VideoWriter, contact_sheet, count_frames, read_video
from miga_bench.sampling import METHODS


@dataclass(frozen=True)
class DemoArm:
    """A method with a preset: one column of the table."""

    method: str
    preset: str | None = None


COLUMNS = {name: DemoArm(name) for name in METHODS} | {"miga anchored": DemoArm("miga", "anchored")}
_SEEN = (
    "hue_drift",
    "field_drift",
    "pattern_drift",
    "flicker",
    "path",
    "found",
    "asked_color",
    "asked_shape",
    "asked_motion",
)
_COST = (
    Measure("nfe", "denoiser evaluations", "work", "cost", 1, 0, "lower"),
    Measure(
        "nfe_latents", "latents through the denoiser", "", "cost", 1e-3, 1, "lower", "thousands"
    ),
    Measure("seconds", "seconds", "time", "cost", 1, 0, "lower"),
)
MEASURES = {name: measure_of(f"world/{name}") for name in _SEEN} | {m.label: m for m in _COST}
WORLD = "the world itself"
WORLD_RATE = 16  # frames a second
SHEET_COLUMNS = 10
PANEL = 128
PROCESS_BYTES = 2**30  # about what one that makes a video takes, with all that it imports
PICTURED = 2  # prompts shown in the pictures; the table counts all


@dataclass(frozen=True)
class DemoVideo:
    """One video of the demo."""

    label: str
    number: int
    prompt: str
    frames: int
    output: Path
    backbone: str


def demo(
    output: Path,
    prompts: int,
    frames: int,
    overwrite: bool = False,
    backbone: str = "tiny-wan",
    arms: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the demo's videos, pictures and table.

    Args:
        output: Folder to write.
        prompts: How many held-out captions; number k has seed k.
        frames: Frames of every video but ``short``'s, which ends with its clip.
        overwrite: Replace what an earlier demo left.
        backbone: One of the embedded models.
        arms: Only these columns, in any order; all if empty.

    Returns:
        The document that also lies in ``demo.json``.

    Raises:
        UserError: A number is wrong or the folder cannot be written.
    """
    began = time.perf_counter()
    labels = _chosen(arms)
    _check(output, prompts, frames, overwrite, backbone)
    videos = output / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    captions = held_out_prompts(prompts)
    items = [
        DemoVideo(label, k, caption, frames, videos / f"{k + 1}-{_file_name(label)}.mp4", backbone)
        for k, caption in enumerate(captions)
        for label in reversed(labels)
    ]
    rows: dict[str, list[Any]] = {label: [{}] * prompts for label in (*labels, WORLD)}
    for item, scores in _make_all(items):
        rows[item.label][item.number] = scores
    rows[WORLD] = [_of_the_world(k, text, frames, backbone) for k, text in enumerate(captions)]
    _pictures(output, captions[:PICTURED], labels, frames, items)
    document = {
        "backbone": backbone,
        "prompts": captions,
        "frames": frames,
        "methods": {label: _summary(scores) for label, scores in rows.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "files": [str(output / name) for name in ("demo.mp4", "demo.png", "demo.json")],
        "hardware": hardware("cpu"),
        "versions": versions(),
    }
    write_json(output / "demo.json", document)
    _print_table(document)
    return document


def _chosen(arms: Sequence[str]) -> list[str]:
    for arm in arms:
        if arm not in COLUMNS:
            raise UserError(f"no arm {arm!r} here: there are {', '.join(COLUMNS)}")
    return [label for label in COLUMNS if not arms or label in arms]


def _file_name(label: str) -> str:
    return re.sub(r"[^a-z]+", "-", label)


def _check(output: Path, prompts: int, frames: int, overwrite: bool, backbone: str) -> None:
    if prompts < 1:
        raise UserError(f"--prompts {prompts}: the demo needs at least 1")
    if frames < 1:
        raise UserError(f"--frames {frames}: a video has at least 1 frame")
    check_writable(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output} is a file: name a folder")
    if (output / "demo.json").exists() and not overwrite:
        raise UserError(f"{output} holds a demo: add --force to replace it, or choose another -o")
    _backbone(backbone)  # says so if the embedded weights are missing


@functools.cache
def _backbone(name: str) -> Backbone:
    return load_backbone(name, device="cpu")


class _Keep(Watcher):
    """Keeps the decoded frames; the files are lossy, the reader should not see that."""

    def __init__(self) -> None:
        self.frames: list[Tensor] = []

    def wrote(self, frames: Tensor, total: int) -> None:
        self.frames.append(frames)


def _make_all(items: Sequence[DemoVideo]) -> Iterator[tuple[DemoVideo, dict[str, float]]]:
    """Make the videos, some at a time, and yield their scores as they are done."""
    workers = _processes(len(items))
    with Bars() as bar:
        lines = PlainLines(bar.disable)
        task = bar.add_task("making videos", total=len(items), frames=f"0/{len(items)}")
        for number, done in enumerate(each_done(make, items, workers), 1):
            yield done
            bar.update(task, completed=number, frames=f"{number}/{len(items)}")
            lines.tell(f"{number} of {len(items)} videos", number, len(items))


def _processes(items: int) -> int:
    """Return how many make videos at a time: one a core, as far as memory goes, at most one an item."""
    free = free_bytes(torch.device("cpu"))
    fit = items if free is None else free // PROCESS_BYTES
    return max(1, min(usable_cores(), fit, items))


def make(item: DemoVideo) -> dict[str, float]:
    """Make one video and return what the reader says of it, and what it cost."""
    arm = COLUMNS[item.label]
    request = GenerateRequest(
        prompts=[PromptAt(item.prompt)],
        output=item.output,
        method=arm.method,
        backbone=item.backbone,
        frames=None if arm.method == "short" else item.frames,
        seed=item.number,
        preset=arm.preset,
        overwrite=True,
    )
    backbone, kept = _backbone(item.backbone), _Keep()
    began = time.perf_counter()
    result = generate(request, kept, backbone)
    if result.status != "done":
        raise result.error or KeyboardInterrupt(result.status)
    seconds = time.perf_counter() - began
    scores = _scores(torch.cat(kept.frames), item.prompt, backbone.frames_of(backbone.window))
    cost = {name: float(result.record["cost"][name]) for name in ("nfe", "nfe_latents")}
    return scores | cost | {"seconds": seconds}


def _scores(frames: Tensor, caption: str, opening: int) -> dict[str, float]:
    found = measure(frames, parse_caption(caption), opening).as_dict()
    return {
        name: math.nan if (value := found.get(name)) is None else float(value)
        for name in MEASURES
        if name in found
    }


def _of_the_world(seed: int, caption: str, frames: int, name: str) -> dict[str, float]:
    """Score what the world itself would show a backbone's camera: the floor of the measures."""
    look, backbone = draw_look(parse_caption(caption), random.Random(seed)), _backbone(name)
    stride = round(WORLD_RATE / backbone.frame_rate)
    shown = render(look, frames * stride)[::stride]
    return _scores(shown, caption, backbone.frames_of(backbone.window))


def _summary(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, spread over prompts and single values of every measure; absent where none could be taken."""
    out = {}
    for name in MEASURES:
        values = [row.get(name, math.nan) for row in rows]
        real = [value for value in values if not math.isnan(value)]
        if real:
            out[name] = {
                "mean": statistics.fmean(real),
                "sd": statistics.stdev(real) if len(real) > 1 else None,
                "per_prompt": [None if math.isnan(value) else value for value in values],
            }
    return out


def _pictures(
    output: Path,
    captions: Sequence[str],
    labels: Sequence[str],
    frames: int,
    items: Sequence[DemoVideo],
) -> None:
    """Write the side-by-side video and the contact sheet, reading all videos in step."""
    paths = {(item.number, item.label): item.output for item in items}
    grid = [[read_video(paths[k, label]) for label in labels] for k in range(len(captions))]
    rate = _backbone(items[0].backbone).frame_rate
    layout = SideBySide(list(labels), list(captions), PANEL, PANEL)
    last = max(frames, *(count_frames(paths[0, label]) for label in labels)) - 1
    shown = sorted({round(i * last / (SHEET_COLUMNS - 1)) for i in range(SHEET_COLUMNS)})
    sheet: dict[tuple[int, str], list[Cell]] = {
        (k, label): [] for k in range(len(captions)) for label in labels
    }
    flat = [video for row in grid for video in row]
    with VideoWriter(output / "demo.mp4", rate) as writer:
        for number, pictures in enumerate(zip_longest(*flat)):
            width = len(labels)
            rows = [pictures[i : i + width] for i in range(0, len(pictures), width)]
            writer.push(layout.compose(rows)[None])
            if number in shown:
                for k, row in enumerate(rows):
                    for label, picture in zip(labels, row, strict=True):
                        sheet[k, label].append(Cell(picture, f"{number / rate:.1f} s"))
    _save_sheet(output / "demo.png", captions, sheet)


def _save_sheet(
    path: Path, captions: Sequence[str], sheet: dict[tuple[int, str], list[Cell]]
) -> None:
    labels = [f"{k + 1}  {label}" for k, label in sheet]
    title = "   ".join(f"{k + 1}: {caption}." for k, caption in enumerate(captions))
    contact_sheet(list(sheet.values()), labels, title, cell_height=64).save(path)


def _print_table(document: dict[str, Any]) -> None:
    count = len(document["prompts"])
    table = Table(
        "measure",
        *document["methods"],
        title=f"{document['backbone']}: mean +- spread over {count} prompts, {document['frames']} frames",
        caption=(
            "what a reader of the procedural world says; drifts are against the opening"
            " clip, for short against its own first quarter. A steadier video may simply move"
            " less: see the path."
        ),
    )
    for name, measured in MEASURES.items():
        cells = []
        for label in document["methods"]:
            value = document["methods"][label].get(name)
            if value is None:
                cells.append("")
                continue
            text = measured.number(value["mean"])
            if value["sd"] is not None:
                text += f" +- {measured.number(value['sd'])}"
            cells.append(text)
        table.add_row(", ".join(filter(None, (measured.title, measured.unit))), *cells)
    Output(120).print(table)
