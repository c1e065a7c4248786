"""What the training reads: freshly rendered clips, and latents computed once."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import parse_caption, random_scene, with_random_detail
from miga_bench.backbones.tiny.latents import StoredClips, load, rank, store
from miga_bench.backbones.tiny.vae_clip import encode_clip


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


class LatentClips(StoredClips[tuple[Tensor, list[str]]]):
    """Batches of normalized latents [B, z, f, 8, 8] and captions of random detail.

    Every clip begins at its first latent, the one that stands for a single frame. It has 21, or 5 if
    it is short.
    """

    SHORT = 5

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Go through the clips; see ``StoredClips.draw``."""
        latents, captions, mean, std = load_latents(self.folder)
        for rng, short, chosen in self.draw(len(captions)):
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

    def encode(frames: Tensor) -> Tensor:
        mean, _ = encode_clip(vae, frames.transpose(0, 1)[None] * 2 - 1)
        return mean[0]

    store(encode, f"{seed} latents {part}", clips, world.CLIP_FRAMES, folder, part)


def load_latents(folder: Path) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Read what `compute_latents` wrote.

    Returns:
        Latents [N, z, 21, 8, 8] in half precision, N captions, and the latents' mean and standard
        deviation per channel, each [z, 1, 1, 1].
    """
    latents, captions = load(folder)
    some = latents[:2000].float()
    mean = some.mean((0, 2, 3, 4)).view(-1, 1, 1, 1)
    std = some.std((0, 2, 3, 4)).view(-1, 1, 1, 1)
    return latents, captions, mean, std
