"""Tiny random Wan models on disk, in both layouts, made once per test run."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

CHANNELS = 4
TEXT_WIDTH = 20
LENGTH = 12
WORDS = ["a", "red", "green", "circle", "square", "moves", "right", "left", "on", "the", "blue"]


def _shaken(model):
    """Move every weight, so that no two (norms start as ones) can be mistaken for each other."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def tiny_transformer(**changes) -> WanTransformer3DModel:
    torch.manual_seed(1)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
    }
    return _shaken(WanTransformer3DModel(**{**config, **changes}))


def tiny_vae(**changes) -> AutoencoderKLWan:
    torch.manual_seed(2)
    config = {
        "base_dim": 4,
        "z_dim": CHANNELS,
        "latents_mean": [0.3, -0.2, 0.1, 0.0],
        "latents_std": [1.5, 0.7, 1.1, 2.0],
    }
    return _shaken(AutoencoderKLWan(**{**config, **changes}))


def tiny_text_encoder(**changes) -> UMT5EncoderModel:
    torch.manual_seed(3)
    config = {
        "vocab_size": len(WORDS) + 3,
        "d_model": TEXT_WIDTH,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 3,
        "feed_forward_proj": "gated-gelu",
    }
    return _shaken(UMT5EncoderModel(UMT5Config(**{**config, **changes})))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )


@functools.cache
def _master() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tiny-wan-"))
    tiny_transformer().save_pretrained(root / "transformer")
    tiny_vae().save_pretrained(root / "vae")
    tiny_text_encoder().save_pretrained(root / "text_encoder")
    tiny_tokenizer().save_pretrained(root / "tokenizer")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.save_pretrained(root / "scheduler")
    (root / "backbone.json").write_text(json.dumps({"height": 32, "width": 48}))
    return root


def tiny_folder(where: Path) -> Path:
    """Copy the tiny diffusers folder to a place a test may damage; ``where`` must not exist."""
    return Path(shutil.copytree(_master(), where))
