"""What the tiny VideoCrafter2's training reads: fresh pictures, and latents computed once."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import parse_caption, random_scene, with_random_detail
from miga_bench.backbones.tiny.latents import StoredClips, load, rank, store
from miga_bench.backbones.tiny.vc2_models import STRIDES, WINDOW

WORLD_STEP = 4  # stored clips keep every fourth frame of the world: 4 a second
_BACK = {"right": "left", "left": "right", "up": "down", "down": "up"}


class Pictures(IterableDataset[Tensor]):
    """Batches of single frames [B, 3, 64, 64] in [-1, 1] for the autoencoder."""

    def __init__(self, seed: int, steps: int, batch: int) -> None:
        self.seed, self.steps, self.batch = seed, steps, batch
        self.first = 0

    def __iter__(self) -> Iterator[Tensor]:
        """Draw other pictures in every process."""
        number, _ = rank()
        for step in range(self.first, self.steps):
            rng = random.Random(f"{self.seed} picture {number} {step}")
            looks = [world.draw_look(random_scene(rng), rng) for _ in range(self.batch)]
            frames = [world.render(look, 1, rng.randrange(200)) for look in looks]
            yield torch.cat(frames) * 2 - 1


class FrameLatents(StoredClips[tuple[Tensor, list[str], float]]):
    """Batches of latents [B, z, F, 8, 8], captions of random detail, and the clips' frame rate.

    A clip begins anywhere in a stored one and takes its frames, 16 or 4 if it is short, at a rate
    drawn per batch. Clips are run backward, which in this world is a motion the other way, until a
    given share of them moves left or up: none at first, half later. The order of time is learned
    soon where every clip moves one way, and which word turns it around from there on; where both
    ways are equally frequent from the start neither is.
    """

    SHORT = 4
    SLOWER = 0.5  # share of batches at 2 frames a second
    # shares of the steps: all one way until the first, both alike from the second
    ONE_WAY = (0.1, 0.4)

    def __iter__(self) -> Iterator[tuple[Tensor, list[str], float]]:
        """Go through the clips; see ``StoredClips.draw``."""
        latents, captions, scale = load_latents(self.folder)
        for step, (rng, short, chosen) in enumerate(self.draw(len(captions)), self.first):
            turned = self.turned(step)
            frames = self.SHORT if short else WINDOW
            fps = min(STRIDES) if rng.random() < self.SLOWER else max(STRIDES)
            span = (frames - 1) * STRIDES[fps] + 1
            clips, texts = [], []
            for i in chosen:
                start = rng.randint(0, latents.shape[2] - span)
                clip = latents[i, :, start : start + span : STRIDES[fps]]
                scene = with_random_detail(parse_caption(captions[i]), rng)
                if (rng.random() < turned) != (scene.motion in ("left", "up")):
                    clip, scene = clip.flip(1), replace(scene, motion=_BACK[scene.motion])
                clips.append(clip)
                texts.append("" if rng.random() < self.dropout else scene.caption)
            yield torch.stack(clips).float() * scale, texts, fps

    def turned(self, step: int) -> float:
        """Share of clips that move left or up at a step, 0 to 0.5."""
        start, end = (share * self.steps for share in self.ONE_WAY)
        return 0.5 * min(1.0, max(0.0, (step - start) / (end - start)))


def compute_latents(
    vae: Any, seed: int, clips: int, frames: int, folder: Path, part: int = 0
) -> None:
    """Render clips and write the latents of their frames and their fully detailed captions.

    Args:
        vae: Trained.
        seed: Of the clips.
        clips: How many.
        frames: Kept of each clip, every fourth of the world's.
        folder: Where ``latents-PART.pt`` and ``captions-PART.json`` go.
        part: Number of this share of the work; each share draws other clips.
    """

    def encode(pictures: Tensor) -> Tensor:
        mean: Tensor = vae.encode(pictures * 2 - 1).latent_dist.mean
        return mean.transpose(0, 1)

    store(encode, f"{seed} frame latents {part}", clips, frames, folder, part, WORLD_STEP)


def load_latents(folder: Path) -> tuple[Tensor, list[str], float]:
    """Read what `compute_latents` wrote.

    Returns:
        Latents [N, z, frames, 8, 8] in half precision, N captions, and the factor that gives the
        latents a standard deviation of one.
    """
    latents, captions = load(folder)
    return latents, captions, 1 / latents[:1000].float().std().item()
