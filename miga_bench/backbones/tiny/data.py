"""What the training reads: freshly rendered clips, and latents computed once."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import parse_caption, random_scene, with_random_detail
from miga_bench.backbones.tiny.vae_clip import encode_clip


def rank() -> tuple[int, int]:
    """This process's number and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class RenderedClips(IterableDataset[Tensor]):
    """Batches of clips [B, 3, F, 64, 64] in [-1, 1] for the autoencoder.

    F grows: many single pictures first, for only they teach space quickly, then clips of 17 and 33
    frames, at last some of 65, so that the decoder knows a clip's first frames and a long past.
    Every process takes the same F at the same step.
    """

    # From this share of the steps on, these lengths in turn.
    LENGTHS = ((0.0, (1,)), (0.2, (1, 5, 9)), (0.3, (17, 17, 33)), (0.65, (17, 33, 17, 17, 65)))

    def __init__(self, seed: int, steps: int, frames_per_step: int) -> None:
        self.seed, self.steps, self.frames_per_step = seed, steps, frames_per_step
        self.first = 0

    def __iter__(self) -> Iterator[Tensor]:
        """Draw other clips in every process."""
        number, _ = rank()
        for step in range(self.first, self.steps):
            rng = random.Random(f"{self.seed} {number} {step}")
            done = step / self.steps
            lengths = next(turn for share, turn in reversed(self.LENGTHS) if done >= share)
            frames = lengths[step % len(lengths)]
            clips = []
            for _ in range(max(1, self.frames_per_step // frames)):
                look = world.draw_look(random_scene(rng), rng)
                clips.append(world.render(look, frames, rng.randrange(200)))
            yield torch.stack(clips).transpose(1, 2) * 2 - 1


class LatentClips(IterableDataset[tuple[Tensor, list[str]]]):
    """Batches of normalized latents [B, z, f, 8, 8] and captions of random detail.

    Every clip begins at its first latent, the one that stands for a single frame. Up to a share of
    the steps, every second batch holds four times as many clips of 5 latents instead of whole ones
    of 21: at the same cost more sprites are seen, and shapes are learned sooner.
    """

    SHORT, SHORT_SHARE = 5, 0.85

    def __init__(self, folder: Path, seed: int, steps: int, batch: int, dropout: float) -> None:
        self.folder, self.seed, self.steps, self.first = folder, seed, steps, 0
        self.batch, self.dropout = batch, dropout

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Go through the clips in shuffled order, again and again, each process its share."""
        number, ranks = rank()
        latents, captions, mean, std = load_latents(self.folder)
        mine = list(range(number, len(captions), ranks))
        order = random.Random(f"{self.seed} order {number}")
        waiting: list[int] = []
        for step in range(self.steps):
            rng = random.Random(f"{self.seed} {number} {step}")
            short = step < self.SHORT_SHARE * self.steps and step % 2 == 0
            batch = 4 * self.batch if short else self.batch
            while len(waiting) < batch:
                waiting += order.sample(mine, len(mine))
            chosen, waiting = waiting[:batch], waiting[batch:]
            if step < self.first:
                continue
            texts = [
                ""
                if rng.random() < self.dropout
                else with_random_detail(parse_caption(captions[i]), rng).caption
                for i in chosen
            ]
            clips = latents[chosen].float()
            yield ((clips - mean) / std)[:, :, : self.SHORT if short else None], texts


def compute_latents(vae: Any, seed: int, clips: int, folder: Path, part: int = 0) -> None:
    """Render clips of 81 frames and write their latents and fully detailed captions.

    Args:
        vae: Trained, with whole clips in use.
        seed: Of the clips.
        clips: How many.
        folder: Where ``latents-PART.pt`` and ``captions-PART.json`` go.
        part: Number of this share of the work; each share draws other clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed} latents {part}")
    latents, captions = [], []
    for _ in range(clips):
        scene = random_scene(rng)
        frames = world.render(world.draw_look(scene, rng))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mean, _ = encode_clip(vae, frames.transpose(0, 1)[None] * 2 - 1)
        latents.append(mean[0].half())
        captions.append(scene.caption)
    torch.save(torch.stack(latents), folder / f"latents-{part}.pt")
    (folder / f"captions-{part}.json").write_text(json.dumps(captions))


def load_latents(folder: Path) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Read what `compute_latents` wrote.

    Returns:
        Latents [N, z, 21, 8, 8] in half precision, N captions, and the latents' mean and standard
        deviation per channel, each [z, 1, 1, 1].
    """
    files = sorted(folder.glob("latents-*.pt"))
    latents = torch.cat([torch.load(file, weights_only=True) for file in files])
    captions: list[str] = []
    for file in sorted(folder.glob("captions-*.json")):
        captions += json.loads(file.read_text())
    some = latents[:2000].float()
    mean = some.mean((0, 2, 3, 4)).view(-1, 1, 1, 1)
    std = some.std((0, 2, 3, 4)).view(-1, 1, 1, 1)
    return latents, captions, mean, std
