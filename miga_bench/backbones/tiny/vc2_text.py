"""The tiny VideoCrafter2's text encoder: taught what captions say, then frozen, as CLIP's is."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from miga_bench.backbones.tiny.config import UNetConfig
from miga_bench.backbones.tiny.grammar import Scene, random_scene, values_of, with_random_detail
from miga_bench.backbones.tiny.vc2_models import encode_text

BATCH = 64


def teach(encoder: Any, tokenizer: Any, config: UNetConfig, seed: int, file: Path) -> None:
    """Train the encoder in place, or read what an earlier call left; then freeze it.

    Its last embedding must tell every attribute of a caption by a linear map. A denoiser alone would
    not keep all words apart: those whose meaning it has not discovered yet, such as two opposite
    directions, grow alike, and then it never does.

    Args:
        encoder: Fresh, of ``vc2_models.make_text_encoder``.
        tokenizer: Its tokenizer.
        config: Says for how many steps, of 64 captions each.
        seed: Of the captions.
        file: Where the trained weights are, or go.
    """
    if file.exists():
        encoder.load_state_dict(torch.load(file, weights_only=True))
    else:
        rng = random.Random(f"{seed} captions")
        kinds = values_of()
        read_out = nn.ModuleDict(
            {name: nn.Linear(config.text_dim, len(values)) for name, values in kinds.items()}
        )
        optimizer = torch.optim.AdamW([*encoder.parameters(), *read_out.parameters()], 1e-3)
        for _ in range(config.text_steps):
            scenes = [with_random_detail(random_scene(rng), rng) for _ in range(BATCH)]
            last = encode_text(tokenizer, encoder, [scene.caption for scene in scenes])[:, -1]
            loss = torch.stack(
                [
                    F.cross_entropy(read_out[name](last), _numbers(scenes, name, values))
                    for name, values in kinds.items()
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save(encoder.state_dict(), file)
    encoder.requires_grad_(False)


def _numbers(scenes: list[Scene], name: str, values: tuple[str | None, ...]) -> torch.Tensor:
    return torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
