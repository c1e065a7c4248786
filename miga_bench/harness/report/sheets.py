"""Contact sheets side by side: one prompt and seed, a row per arm, the same moments of every video."""

from __future__ import annotations

import io
from collections.abc import Sequence

from av.error import FFmpegError
from torch import Tensor

from miga_bench.harness.report.document import Picture
from miga_bench.harness.results import Results, Row
from miga_bench.harness.store import VIDEO
from miga_bench.media import Cell, contact_sheet, read_video

FRAMES = 8
HEIGHT = 96  # pixels of a frame
WIDEST = 1000  # pixels of all frames of a row: wide pictures get fewer


def shown_pairs(run: Results, prompts: int) -> list[tuple[str, int]]:
    """Return which videos to show: of the first prompts the seed that most arms have.

    Args:
        run: The run.
        prompts: How many prompts at most.
    """
    done: dict[str, dict[int, int]] = {}
    for row in run.rows:
        seeds = done.setdefault(row.prompt_id, {})
        seeds[row.seed] = seeds.get(row.seed, 0) + (row.status == "done")
    pairs = [(name, max(seeds, key=lambda s: (seeds[s], -s))) for name, seeds in done.items()]
    return [(name, seed) for name, seed in pairs if done[name][seed]][:prompts]


def sheet(run: Results, pair: tuple[str, int], name: str) -> Picture:
    """Lay out the videos of one prompt and seed.

    Args:
        run: The run.
        pair: Prompt and seed; at least one arm has made it.
        name: Of the file.
    """
    rows = [row for row in run.rows if row.pair == pair]
    moments = _moments(rows)
    frames = [_frames(row, moments) for row in rows]
    rate = next((row.frame_rate for row in rows if row.frame_rate), 0.0)
    captions = [f"{m / rate:.1f} s" if rate else f"frame {m}" for m in moments]
    first = next((frame for found in frames for frame in found.values()), None)
    if first is None:  # files that cannot be read: blank, but there
        import torch

        first = torch.full((3, HEIGHT, HEIGHT), 208, dtype=torch.uint8)
        frames = [{moments[0]: first}, *frames[1:]]
    width = round(HEIGHT * first.shape[-1] / first.shape[-2])
    keep = _spread(moments, max(4, min(FRAMES, WIDEST // (width + 6))))
    cells = [[Cell(found.get(m), captions[moments.index(m)]) for m in keep] for found in frames]
    image = contact_sheet(cells, [row.arm for row in rows], cell_height=HEIGHT)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    arms = ", ".join(row.arm for row in rows)
    alt = f"frames over time of prompt {pair[0]}, seed {pair[1]}; rows: {arms}"
    return Picture(f"{name}.jpg", buffer.getvalue(), alt, image.width)


def _moments(rows: Sequence[Row]) -> list[int]:
    """Return the frame numbers to show, both ends of the longest video among them."""
    last = max(row.frames for row in rows) - 1
    return sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)})


def _spread(moments: Sequence[int], count: int) -> list[int]:
    if len(moments) <= count:
        return list(moments)
    return [moments[round(i * (len(moments) - 1) / (count - 1))] for i in range(count)]


def _frames(row: Row, moments: Sequence[int]) -> dict[int, Tensor]:
    """Return the frames at some moments, as far as the video goes; it is read once, frame by frame."""
    wanted, found = set(moments), {}
    if row.status != "done":
        return {}
    try:
        for number, frame in enumerate(read_video(row.folder / VIDEO)):
            if number in wanted:
                found[number] = frame.clone()
            if number >= moments[-1]:
                break
    except (OSError, FFmpegError):
        pass  # what was read so far is shown; the rest stays blank
    return found
