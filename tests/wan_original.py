"""Tiny Wan models in the layout the authors published: the inverse of what is loaded."""

import json
import re
import shutil

import torch
from safetensors.torch import save_file
from wan_fixtures import tiny_text_encoder, tiny_transformer, tiny_vae

from miga_bench.backbones.wan_checkpoint import (
    ORIGINAL_TEXT,
    ORIGINAL_TOKENIZER,
    ORIGINAL_TRANSFORMER,
    ORIGINAL_VAE,
)

_TRANSFORMER = [
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"(^blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"(^blocks\.\d+)\.norm2", r"\1.norm3"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
]

_VAE = [
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"^(encoder|decoder)\.conv_in", r"\1.conv1"),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}"),
    (r"\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f".upsamples.{4 * int(m[1]) + 3}"),
    (r"(middle|samples)\.(\d+)\.norm1\.", r"\1.\2.residual.0."),
    (r"(middle|samples)\.(\d+)\.conv1\.", r"\1.\2.residual.2."),
    (r"(middle|samples)\.(\d+)\.norm2\.", r"\1.\2.residual.3."),
    (r"(middle|samples)\.(\d+)\.conv2\.", r"\1.\2.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
]

_TEXT = [
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
    (r"\.layer\.0\.SelfAttention\.", ".attn."),
    (r"\.layer\.0\.layer_norm\.", ".norm1."),
    (r"\.layer\.1\.layer_norm\.", ".norm2."),
    (r"\.layer\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
    (r"\.layer\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
    (r"\.layer\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
]


def _renamed(state, rules):
    def rename(key):
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return {rename(key): value for key, value in state.items()}


def original_transformer(state):
    return _renamed(state, _TRANSFORMER)


def original_vae(state):
    return _renamed(state, _VAE)


def original_text(state):
    return _renamed({k: v for k, v in state.items() if "embed_tokens" not in k}, _TEXT)


def original_folder(where, tokenizer):
    """Write tiny models as the authors' files; return the folder and the models."""
    sizes = {"in_channels": 16, "out_channels": 16}
    transformer, encoder = tiny_transformer(**sizes), tiny_text_encoder()
    mean, std = [0.1 * i - 0.7571 for i in range(16)], [1.0] * 16
    vae = tiny_vae(z_dim=16, latents_mean=mean, latents_std=std)
    where.mkdir()
    save_file(original_transformer(transformer.state_dict()), where / ORIGINAL_TRANSFORMER)
    (where / "config.json").write_text(json.dumps({"model_type": "t2v", "num_heads": 2}))
    torch.save(original_vae(vae.state_dict()), where / ORIGINAL_VAE)
    torch.save(original_text(encoder.state_dict()), where / ORIGINAL_TEXT)
    shutil.copytree(tokenizer, where / ORIGINAL_TOKENIZER)
    return where, (transformer, vae, encoder)


def published_names():
    """Return the key names of the published 1.3B transformer, as its code defines them."""
    ends = ("weight", "bias")
    heads = ["head.head", "patch_embedding", "text_embedding.0", "text_embedding.2"]
    heads += ["time_embedding.0", "time_embedding.2", "time_projection.1"]
    parts = [f"{a}.{b}" for a in ("self_attn", "cross_attn") for b in "qkvo"]
    parts += ["ffn.0", "ffn.2", "norm3"]
    block = [f"{part}.{end}" for part in parts for end in ends] + ["modulation"]
    block += [f"{a}.norm_{b}.weight" for a in ("self_attn", "cross_attn") for b in "qk"]
    names = {f"blocks.{i}.{name}" for i in range(30) for name in block}
    return names | {f"{head}.{end}" for head in heads for end in ends} | {"head.modulation"}
