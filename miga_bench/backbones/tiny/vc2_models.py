"""Building the parts of the tiny VideoCrafter2-family model, and writing them as a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from miga_bench.backbones.tiny.config import PictureVaeConfig, UNetConfig
from miga_bench.backbones.tiny.models import TEXT_LENGTH
from miga_bench.backbones.tiny.world import SIDE
from miga_bench.backbones.vc2_denoiser import VideoCrafterUNet

WEIGHTS = Path(__file__).with_name("weights") / "videocrafter2"
WINDOW = 16
# The world runs at 16 frames a second; clips keep every fourth frame, or every eighth. A sprite then
# moves by 0.2 to 1 latents a frame: the network has no positions in time, and its convolutions over
# neighboring frames learn no direction from smaller steps.
STRIDES = {4.0: 1, 2.0: 2}  # fps told to the network: step in the stored clips, which are at 4


def make_vae(config: PictureVaeConfig) -> Any:
    """A fresh Stable Diffusion autoencoder, 8x smaller in space."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        latent_channels=config.z_dim,
        norm_num_groups=config.groups,
        sample_size=SIDE,
        scaling_factor=1.0,
    )


def make_unet(config: UNetConfig, z_dim: int) -> Any:
    """A fresh VideoCrafter2 denoiser for latents of ``z_dim`` channels."""
    return VideoCrafterUNet(
        in_channels=z_dim,
        out_channels=z_dim,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=config.text_dim,
        attention_head_dim=config.head_dim,
        temporal_heads=config.temporal_heads,
        norm_num_groups=config.groups,
    )


def make_text_encoder(config: UNetConfig, vocabulary: int) -> Any:
    """A fresh CLIP text tower, the family of VideoCrafter2's text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.text_dim,
            intermediate_size=2 * config.text_dim,
            num_hidden_layers=config.text_layers,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def encode_text(tokenizer: Any, encoder: Any, captions: list[str]) -> torch.Tensor:
    """Embed captions by VideoCrafter2's rule: padded with token 0 to full length, no mask.

    Args:
        tokenizer: From ``models.make_tokenizer`` or the ``tokenizer`` folder.
        encoder: From ``make_text_encoder`` or the ``text_encoder`` folder.
        captions: B sentences; the unconditional one is "".

    Returns:
        Embeddings [B, 24, text_dim].
    """
    tokens = tokenizer(
        captions,
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    hidden: torch.Tensor = encoder(tokens.input_ids).last_hidden_state
    return hidden


def save(vae: Any, unet: Any, text_encoder: Any, tokenizer: Any, folder: Path) -> None:
    """Write all parts, weights in half precision, laid out as diffusers lays out text-to-video."""
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    for file in folder.glob("*/*.safetensors"):
        halves = {name: value.half().contiguous() for name, value in load_file(file).items()}
        save_file(halves, file, {"format": "pt"})
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["miga_bench.backbones.vc2_denoiser", "VideoCrafterUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    side = {
        "height": SIDE,
        "width": SIDE,
        "window": WINDOW,
        "frame_rate": max(STRIDES),
        "fps": max(STRIDES),
        "fps_range": [min(STRIDES), max(STRIDES)],
        "rescale": True,
        "negative_prompt": "",
    }
    (folder / "backbone.json").write_text(json.dumps(side, indent=2) + "\n")
