"""Building the parts of the tiny Wan-family model, and writing them as a diffusers folder."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from miga_bench.backbones.tiny.config import DenoiserConfig, VaeConfig
from miga_bench.backbones.tiny.grammar import WORDS
from miga_bench.backbones.tiny.world import FPS, SIDE

TEXT_LENGTH = 24
WEIGHTS = Path(__file__).with_name("weights") / "wan"


def make_vae(config: VaeConfig) -> Any:
    """A fresh Wan2.1 autoencoder: 8x smaller in space, 4x in time after the first frame."""
    return AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * config.z_dim,
        latents_std=[1.0] * config.z_dim,
    )


def make_transformer(config: DenoiserConfig, z_dim: int) -> Any:
    """A fresh Wan2.1 denoiser for latents of ``z_dim`` channels."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=z_dim,
        out_channels=z_dim,
        text_dim=config.text_dim,
        freq_dim=64,
        ffn_dim=config.ffn,
        num_layers=config.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=1024,
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the grammar; ends with </s> and pads with <pad>, as T5 does."""
    specials = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
    )


def make_text_encoder(config: DenoiserConfig, vocabulary: int) -> Any:
    """A fresh UMT5 encoder, the family of Wan's text encoder."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=config.text_dim,
            d_kv=16,
            d_ff=2 * config.text_dim,
            num_layers=config.text_layers,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=TEXT_LENGTH,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def encode_text(tokenizer: Any, encoder: Any, captions: list[str]) -> torch.Tensor:
    """Embed captions by Wan's rule: positions past a caption's end are zero.

    Args:
        tokenizer: From `make_tokenizer` or the ``tokenizer`` folder.
        encoder: From `make_text_encoder` or the ``text_encoder`` folder.
        captions: B sentences; the unconditional one is "".

    Returns:
        Embeddings [B, 24, text_dim].
    """
    tokens = tokenizer(
        captions,
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = tokens.attention_mask
    hidden = encoder(tokens.input_ids, mask).last_hidden_state
    embeddings: torch.Tensor = hidden * mask[..., None].to(hidden.dtype)
    return embeddings


def make_scheduler(shift: float) -> Any:
    """The solver public Wan2.1 folders name, with our flow shift."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        num_train_timesteps=1000,
        solver_order=2,
    )


def save_vae(vae: Any, mean: torch.Tensor, std: torch.Tensor, folder: Path) -> None:
    """Write the autoencoder with the measured statistics of its latents, each [z]."""
    vae.register_to_config(
        latents_mean=[round(x, 5) for x in mean.tolist()],
        latents_std=[round(x, 5) for x in std.tolist()],
    )
    vae.save_pretrained(folder / "vae", safe_serialization=True)


def save_denoiser(
    transformer: Any, text_encoder: Any, tokenizer: Any, shift: float, folder: Path
) -> None:
    """Write everything but the autoencoder, laid out as the public Wan2.1 folders are."""
    transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    make_scheduler(shift).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    # What a public folder does not say and our loader must know.
    side = {
        "height": SIDE,
        "width": SIDE,
        "window": 21,
        "frame_rate": FPS,
        "flow_shift": shift,
        "negative_prompt": "",
    }
    (folder / "backbone.json").write_text(json.dumps(side, indent=2) + "\n")
