"""What the four scores cost beside VBench's own functions: same files, weights and process.

Needs VBench's functions: ``make bench-scores`` runs it in .venv-vbench. Weights are random, which
costs what trained ones cost. Both sides read the file themselves, ours once for all four scores.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn

from miga_bench.errors import UserError, plainly
from miga_bench.harness.provenance import forget_peak_memory, memory_kib
from miga_bench.metrics.networks.original import import_torchvision, module

PIECE = 16
SIZES = {"small": (128, 2), "full": (768, 12)}


@dataclass(frozen=True)
class Networks:
    """The original's networks with random weights, and the file of AMT's."""

    dino: nn.Module
    clip: nn.Module
    amt: Path


@dataclass(frozen=True)
class Cost:
    """What one side took: CPU seconds, bytes above the start, and the scores it gave.

    CPU seconds, because other work on the machine does not change them.
    """

    seconds: float
    peak: int
    scores: dict[str, float]


def main() -> None:
    """Measure, print a table, and a JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--networks", choices=SIZES, default="small", help="of DINO and CLIP")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="ours, DINO and CLIP"
    )
    options = parser.parse_args()
    # before torchmetrics, which would import it
    library = import_torchvision()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        networks = make_networks(Path(folder), *SIZES[options.networks])
        for frames in options.frames:
            path = Path(folder) / f"{frames}.mp4"
            write_video(path, frames, options.height, options.width)
            rows += measure(path, frames, networks, getattr(torch, options.dtype))
    del library
    document = {"options": vars(options), "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(document))


def measure(
    path: Path, frames: int, networks: Networks, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Measure both sides on one file, score by score in turn, then all four."""
    rows = []
    theirs_all, ours_all = [], ours(networks, dtype)
    for name, function in theirs(networks).items():
        their = cost(partial(_named, name, function, path))
        our = cost(partial(score_file, path, {name: ours_all[name]}))
        theirs_all.append(their)
        rows.append(row(name, frames, their, our))
    four = cost(partial(score_file, path, ours_all))
    their = Cost(
        sum(c.seconds for c in theirs_all),
        max(c.peak for c in theirs_all),
        {name: value for c in theirs_all for name, value in c.scores.items()},
    )
    rows.append(row("all four", frames, their, four))
    return rows


def _named(name: str, function: Callable[[list[str]], Any], path: Path) -> dict[str, float]:
    return {name: function([str(path)])[0]}


def row(name: str, frames: int, their: Cost, our: Cost) -> dict[str, Any]:
    """Compare two costs, print the comparison."""
    off = max(abs(value - our.scores[key]) for key, value in their.scores.items())
    found = {
        "score": name,
        "frames": frames,
        "original_s": round(their.seconds, 2),
        "ours_s": round(our.seconds, 2),
        "faster": round(their.seconds / our.seconds, 2),
        "original_mb": round(their.peak / 2**20, 1),
        "ours_mb": round(our.peak / 2**20, 1),
        "difference": float(f"{off:.1e}"),
    }
    print("  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    return found


def cost(work: Callable[[], dict[str, float]]) -> Cost:
    """Run something and return what it took; peak memory is this process's, by the kernel."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed is not this one's
    forget_peak_memory("cpu")
    before, began = _memory("VmRSS"), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        scores = work()
    return Cost(time.process_time() - began, _memory("VmHWM") - before, scores)


def _memory(field: str) -> int:
    kib = memory_kib(field)
    assert kib is not None  # the original runs on Linux
    return kib * 1024


def make_networks(folder: Path, width: int, layers: int) -> Networks:
    """Make the original's networks with random weights, DINO and CLIP of a width and depth.

    Raises:
        UserError: DINO's code cannot be had.
    """
    from clip.model import CLIP

    torch.manual_seed(0)
    place = os.environ.get("MIGA_BENCH_DINO_REPO")
    repository, source = (place, "local") if place else ("facebookresearch/dino:main", "github")
    try:
        made = type(
            torch.hub.load(
                repository, "dino_vits16", source=source, pretrained=False, trust_repo=True
            )
        )
    except OSError as error:
        raise UserError(
            f"DINO's code cannot be had ({error}); clone facebookresearch/dino and name its folder "
            "in MIGA_BENCH_DINO_REPO"
        ) from error
    dino = made(
        patch_size=16,
        embed_dim=width,
        depth=layers,
        num_heads=width // 64,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    clip = CLIP(512, 224, layers, width, 32, 8, 100, 64, 1, 1)
    amt = folder / "amt-s.pth"
    network = module("third_party.amt.networks.AMT-S").Model()
    torch.save({"state_dict": network.state_dict()}, amt)
    return Networks(dino.eval(), clip.eval(), amt)


def write_video(path: Path, frames: int, height: int, width: int) -> None:
    """Write a drifting, grainy picture without loss, frame by frame."""
    picture = np.random.default_rng(0).integers(0, 64, (height, width, 3), np.uint8)
    picture += np.linspace(0, 190, width, dtype=np.uint8)[None, :, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=8, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        for t in range(frames):
            frame = np.ascontiguousarray(np.roll(picture, 2 * t, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def theirs(networks: Networks) -> dict[str, Callable[[list[str]], tuple[float, Any]]]:
    """Return VBench's functions of a list of files."""
    import vbench
    from vbench.background_consistency import background_consistency
    from vbench.motion_smoothness import MotionSmoothness, motion_smoothness
    from vbench.subject_consistency import subject_consistency
    from vbench.temporal_flickering import temporal_flickering

    config = Path(vbench.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml"
    motion = MotionSmoothness(str(config), str(networks.amt), torch.device("cpu"))
    return {
        "temporal_flickering": temporal_flickering,
        "subject_consistency": lambda p: subject_consistency(networks.dino, p, "cpu", False),
        "background_consistency": lambda p: background_consistency(
            networks.clip, None, p, "cpu", False
        ),
        "motion_smoothness": partial(motion_smoothness, motion),
    }


def ours(networks: Networks, dtype: torch.dtype) -> dict[str, Any]:
    """Return our scores with the same weights."""
    from miga_bench import metrics
    from miga_bench.metrics.networks.amt import Amt
    from miga_bench.metrics.networks.clip import Clip
    from miga_bench.metrics.networks.dino import Dino

    return {
        "temporal_flickering": metrics.TemporalFlickering(),
        "subject_consistency": metrics.SubjectConsistency(
            Dino(networks.dino.state_dict(), dtype=dtype)
        ),
        "background_consistency": metrics.BackgroundConsistency(
            Clip(networks.clip.state_dict(), dtype=dtype)
        ),
        "motion_smoothness": metrics.MotionSmoothness(Amt(networks.amt)),
    }


def score_file(path: Path, scores: dict[str, Any]) -> dict[str, float]:
    """Read a file once and feed every piece to all scores."""
    for score in scores.values():
        score.begin()
    for piece in pieces(path):
        for score in scores.values():
            score.extend(piece)
    return {name: score.end() for name, score in scores.items()}


def pieces(path: Path) -> Iterator[Tensor]:
    """Return a file's frames, uint8 ``[T, 3, H, W]``, a few at a time."""
    held = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            held.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
            if len(held) == PIECE:
                yield torch.stack(held)
                held = []
    if held:
        yield torch.stack(held)


if __name__ == "__main__":
    sys.exit(plainly(main))
