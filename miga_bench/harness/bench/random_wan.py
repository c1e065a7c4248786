"""A Wan model of about 100M random parameters: large enough for its denoiser to count, and made in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from miga_bench.backbones import BACKBONES

NAME = "random-wan-100m"
FRAMES = 9


def random_wan(folder: Path) -> Path:
    """Write the model around the other parts of the embedded one, unless it is there.

    Returns:
        Its folder, ``folder / NAME``; windows have ``FRAMES`` latents.
    """
    from diffusers import WanTransformer3DModel

    root = folder / NAME
    if root.exists():
        return root
    embedded = BACKBONES["tiny-wan"].where
    assert isinstance(embedded, Path)
    root.mkdir()
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (root / part).symlink_to(embedded / part)
    torch.manual_seed(0)
    model: Any = WanTransformer3DModel(
        num_attention_heads=12,
        attention_head_dim=64,
        in_channels=12,
        out_channels=12,
        text_dim=64,
        freq_dim=256,
        ffn_dim=3072,
        num_layers=10,
    )
    model.save_pretrained(root / "transformer")
    facts = {"height": 64, "width": 64, "window": FRAMES}
    (root / "backbone.json").write_text(json.dumps(facts), encoding="utf-8")
    return root
