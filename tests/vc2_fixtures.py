"""Tiny random VideoCrafter2 models on disk, made once per test run."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel
from wan_fixtures import LENGTH, WORDS, tiny_tokenizer

from miga_bench.backbones.vc2_denoiser import VideoCrafterUNet

CHANNELS = 4
TEXT_WIDTH = 64  # one head of OpenCLIP's width


def _shaken(model):
    """Move every weight: norms start as ones, the convolutions over time end in zeros."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return model.eval()


def tiny_unet(**changes) -> VideoCrafterUNet:
    torch.manual_seed(1)
    config = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 8,
    }
    return _shaken(VideoCrafterUNet(**{**config, **changes}))


def tiny_vae(**changes) -> AutoencoderKL:
    torch.manual_seed(2)
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "latent_channels": CHANNELS,
    }
    return _shaken(AutoencoderKL(**{**config, **changes}))


def tiny_text_encoder() -> CLIPTextModel:
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=TEXT_WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        projection_dim=TEXT_WIDTH,
    )
    return _shaken(CLIPTextModel(config))


@functools.cache
def _master() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tiny-vc2-"))
    tiny_unet().save_pretrained(root / "unet")
    tiny_vae().save_pretrained(root / "vae")
    tiny_text_encoder().save_pretrained(root / "text_encoder")
    tiny_tokenizer().save_pretrained(root / "tokenizer")
    (root / "backbone.json").write_text(json.dumps({"height": 16, "width": 24, "window": 5}))
    return root


def tiny_folder(where: Path) -> Path:
    """Copy the tiny diffusers folder to a place a test may damage; ``where`` must not exist."""
    return Path(shutil.copytree(_master(), where))
