"""What stage two reads, whatever the family: latents of clips, computed once, with their captions."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import random_scene

Batch = TypeVar("Batch", covariant=True)


def rank() -> tuple[int, int]:
    """This process's number and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class StoredClips(IterableDataset[Batch]):
    """Batches of stored latents, a given number of steps of them.

    Up to a share of the steps every second batch holds four times as many clips that are short: at
    the same cost more sprites are seen, and shapes are learned sooner.

    Attributes:
        SHORT: Latents of a short clip.
        SHORT_SHARE: Share of the steps.
        first: Step to begin with.
    """

    SHORT: ClassVar[int]
    SHORT_SHARE: ClassVar[float] = 0.85

    def __init__(self, folder: Path, seed: int, steps: int, batch: int, dropout: float) -> None:
        self.folder, self.seed, self.steps, self.first = folder, seed, steps, 0
        self.batch, self.dropout = batch, dropout

    def draw(self, clips: int) -> Iterator[tuple[random.Random, bool, list[int]]]:
        """Go through the clips in shuffled order, again and again, each process its share.

        Args:
            clips: How many are stored.

        Yields:
            For every step its own source of randomness, whether its clips are short, and which they
            are.
        """
        number, ranks = rank()
        mine = list(range(number, clips, ranks))
        order = random.Random(f"{self.seed} order {number}")
        waiting: list[int] = []
        for step in range(self.steps):
            short = step < self.SHORT_SHARE * self.steps and step % 2 == 0
            batch = 4 * self.batch if short else self.batch
            while len(waiting) < batch:
                waiting += order.sample(mine, len(mine))
            chosen, waiting = waiting[:batch], waiting[batch:]
            if step >= self.first:
                yield random.Random(f"{self.seed} {number} {step}"), short, chosen


def store(
    encode: Callable[[Tensor], Tensor],
    stream: str,
    clips: int,
    frames: int,
    folder: Path,
    part: int,
    step: int = 1,
) -> None:
    """Render clips and write their latents and fully detailed captions.

    Args:
        encode: Turns frames [F, 3, 64, 64] in [0, 1] into latents [z, f, 8, 8].
        stream: Names the randomness of the clips.
        clips: How many.
        frames: Of each clip.
        folder: Where ``latents-PART.pt`` and ``captions-PART.json`` go.
        part: Number of this share of the work.
        step: Frames of the world from one to the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(stream)
    latents, captions = [], []
    for _ in range(clips):
        scene = random_scene(rng)
        look = world.draw_look(scene, rng)
        path = world.positions(look, step * frames)[::step]
        pictures = torch.from_numpy(world.draw(look, path))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents.append(encode(pictures).half())
        captions.append(scene.caption)
    torch.save(torch.stack(latents), folder / f"latents-{part}.pt")
    (folder / f"captions-{part}.json").write_text(json.dumps(captions))


def load(folder: Path) -> tuple[Tensor, list[str]]:
    """Read what `store` wrote: latents [N, z, f, 8, 8] in half precision, and N captions."""
    files = sorted(folder.glob("latents-*.pt"))
    latents = torch.cat([torch.load(file, weights_only=True) for file in files])
    captions: list[str] = []
    for file in sorted(folder.glob("captions-*.json")):
        captions += json.loads(file.read_text())
    return latents, captions
