"""VideoCrafter2's original key names, what they are called here, and what their shapes say.

The released checkpoint is one table. Its U-Net numbers the layers in the order they are run and the
parts of a layer by their place in it; its autoencoder is Stable Diffusion's, its text tower
OpenCLIP's. Keys that are not known keep their names, so that whoever fills a module can name them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPTextConfig

from miga_bench.backbones.checkpoint import some_of
from miga_bench.errors import UserError

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.model."

# The first temporal transformer has as many heads in every released model.
TEMPORAL_HEADS = 8
CLIP_HEAD = 64

_SCALING_FACTOR = 0.18215

_HEADS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "fps_embedding.0": "fps_embedding.linear_1",
    "fps_embedding.2": "fps_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "init_attn.0": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESIDUAL = {
    "in_layers.0": "resnets.{}.norm1",
    "in_layers.2": "resnets.{}.conv1",
    "emb_layers.1": "resnets.{}.time_emb_proj",
    "out_layers.0": "resnets.{}.norm2",
    "out_layers.3": "resnets.{}.conv2",
    "skip_connection": "resnets.{}.conv_shortcut",
}
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"middle_block\.(\d+)\.(.+)")


def convert_unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original denoiser's keys, prefix removed, to ``VideoCrafterUNet``'s."""
    layers = _layers(state)
    converted = {}
    for key, tensor in state.items():
        name = _unet_name(key, layers)
        if name.startswith("transformer_in.proj_") and tensor.dim() == 3:
            tensor = tensor.squeeze(2)  # a convolution of width 1 there, a linear layer here
        converted[name] = tensor
    return converted


def _layers(state: Mapping[str, Tensor]) -> int:
    """Return how many residual blocks a level has: the first step down follows them."""
    steps = [int(key.split(".")[1]) for key in state if re.fullmatch(r"input.*\.0\.op\.bias", key)]
    return min(steps, default=3) - 1


def _unet_name(key: str, layers: int) -> str:
    for old, new in _HEADS.items():
        if key.startswith(f"{old}."):
            return new + key[len(old) :]
    if found := _MIDDLE.fullmatch(key):
        place, part = int(found[1]), found[2]
        if place in (0, 3):
            return f"mid_block.{_residual_name(part, place // 3)}"
        return f"mid_block.{'attentions' if place == 1 else 'temp_attentions'}.0.{part}"
    if not (found := _BLOCK.fullmatch(key)):
        return key
    side, number, place, part = found[1], int(found[2]), int(found[3]), found[4]
    down = side == "input"
    level, layer = divmod(number - down, layers + 1)
    block = f"{'down' if down else 'up'}_blocks.{level}"
    if part.startswith("op."):
        return f"{block}.downsamplers.0.conv.{part[3:]}"
    if part.startswith("conv."):
        return f"{block}.upsamplers.0.{part}"
    if place == 0:
        return f"{block}.{_residual_name(part, layer)}"
    return f"{block}.{'attentions' if place == 1 else 'temp_attentions'}.{layer}.{part}"


def _residual_name(part: str, layer: int) -> str:
    if part.startswith("temopral_conv."):  # so spelled in the checkpoint
        return f"temp_convs.{layer}.{part.split('.', 1)[1]}"
    stem, _, end = part.rpartition(".")
    return f"{_RESIDUAL[stem].format(layer)}.{end}" if stem in _RESIDUAL else part


def unet_config(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Read ``VideoCrafterUNet``'s configuration off the original denoiser's shapes.

    Raises:
        UserError: It is another model; the keys it lacks are named.
    """
    first, last, inner = "input_blocks.0.0.weight", "out.2.weight", "init_attn.0.proj_in.weight"
    text = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    _need(
        state, (first, last, inner, text, "fps_embedding.0.weight"), source, "VideoCrafter2 U-Net"
    )
    layers = _layers(state)
    count = max(int(key.split(".")[1]) for key in state if key.startswith("input_blocks."))
    widths = [
        f"input_blocks.{1 + level * (layers + 1)}.0.in_layers.2.weight"
        for level in range((count + 1) // (layers + 1))
    ]
    _need(state, tuple(widths), source, "VideoCrafter2 U-Net")
    return {
        "in_channels": state[first].shape[1],
        "out_channels": state[last].shape[0],
        "block_out_channels": tuple(state[key].shape[0] for key in widths),
        "layers_per_block": layers,
        "cross_attention_dim": state[text].shape[1],
        "attention_head_dim": state[inner].shape[0] // TEMPORAL_HEADS,
        "temporal_heads": TEMPORAL_HEADS,
    }


_VAE_RULES = [
    (re.compile(r"\.down\.(\d+)\.block\.(\d+)\."), r".down_blocks.\1.resnets.\2."),
    (re.compile(r"\.down\.(\d+)\.downsample\.conv\."), r".down_blocks.\1.downsamplers.0.conv."),
    (re.compile(r"\.up\.(\d+)\.block\.(\d+)\."), r".up_blocks.\1.resnets.\2."),
    (re.compile(r"\.up\.(\d+)\.upsample\.conv\."), r".up_blocks.\1.upsamplers.0.conv."),
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.mid\.attn_1\.norm\."), ".mid_block.attentions.0.group_norm."),
    (re.compile(r"\.mid\.attn_1\.([qkv])\."), r".mid_block.attentions.0.to_\1."),
    (re.compile(r"\.mid\.attn_1\.proj_out\."), ".mid_block.attentions.0.to_out.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"^(encoder|decoder)\.norm_out\."), r"\1.conv_norm_out."),
    # Names that diffusers gave the attention before it was called to_q.
    (re.compile(r"\.attentions\.0\.query\."), ".attentions.0.to_q."),
    (re.compile(r"\.attentions\.0\.key\."), ".attentions.0.to_k."),
    (re.compile(r"\.attentions\.0\.value\."), ".attentions.0.to_v."),
    (re.compile(r"\.attentions\.0\.proj_attn\."), ".attentions.0.to_out.0."),
]


def convert_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original autoencoder's keys, prefix removed, to ``AutoencoderKL``'s.

    Keys that are ``AutoencoderKL``'s already, in its older spelling too, come out in the present one.
    """
    levels = 1 + max(
        (int(k.split(".")[2]) for k in state if k.startswith("decoder.up.")), default=0
    )
    converted = {}
    for key, tensor in state.items():
        name = key
        for pattern, replacement in _VAE_RULES:
            name = pattern.sub(replacement, name)
        if key.startswith("decoder.up."):  # counted from the finest there, from the coarsest here
            level = levels - 1 - int(key.split(".")[2])
            name = re.sub(r"up_blocks\.\d+", f"up_blocks.{level}", name)
        if ".attentions." in name and tensor.dim() == 4:
            tensor = tensor[:, :, 0, 0]  # a convolution of width 1 there, a linear layer here
        converted[name] = tensor
    return converted


def vae_config(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Read ``AutoencoderKL``'s configuration off the original autoencoder's shapes.

    Raises:
        UserError: It is another model; the keys it lacks are named.
    """
    first, latent = "encoder.conv_in.weight", "post_quant_conv.weight"
    _need(state, (first, latent), source, "VideoCrafter2 autoencoder")
    blocks = [key.split(".") for key in state if re.match(r"encoder\.down\.\d+\.block\.\d+\.", key)]
    levels = 1 + max((int(key[2]) for key in blocks), default=-1)
    widths = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    _need(state, tuple(widths), source, "VideoCrafter2 autoencoder")
    return {
        "in_channels": state[first].shape[1],
        "out_channels": state[first].shape[1],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(state[key].shape[0] for key in widths),
        "layers_per_block": 1 + max(int(key[4]) for key in blocks),
        "latent_channels": state[latent].shape[1],
        "scaling_factor": _SCALING_FACTOR,
    }


_TEXT_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TEXT_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
# Used for comparing texts with pictures only, or remade from its size.
_TEXT_UNUSED = ("text_projection", "logit_scale", "attn_mask")
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def convert_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename OpenCLIP's text keys, prefix removed, to ``CLIPTextModel``'s.

    VideoCrafter2 reads the last layer but one, so the last layer is left out.
    """
    last = _text_layers(state)
    converted = {}
    for key, tensor in state.items():
        found = _LAYER.fullmatch(key)
        if key in _TEXT_UNUSED or (found and int(found[1]) == last):
            continue
        name = _TEXT_TOP.get(key, key)
        if found:
            layer = f"encoder.layers.{found[1]}"
            stem, _, end = found[2].rpartition(".")
            if stem == "attn" and end in ("in_proj_weight", "in_proj_bias"):
                for part, share in zip("qkv", tensor.chunk(3), strict=True):
                    converted[f"{layer}.self_attn.{part}_proj.{end[8:]}"] = share
                continue
            name = f"{layer}.{_TEXT_NAMES[stem]}.{end}" if stem in _TEXT_NAMES else key
        converted[name] = tensor
    return converted


def text_config(state: Mapping[str, Tensor], source: str) -> CLIPTextConfig:
    """Read transformers' configuration off OpenCLIP's shapes; the last layer is not counted.

    Raises:
        UserError: It is another model; the keys it lacks are named.
    """
    layer = "transformer.resblocks.0"
    keys = ("token_embedding.weight", "positional_embedding", f"{layer}.mlp.c_fc.weight")
    _need(state, keys, source, "OpenCLIP text tower")
    vocabulary, width = state[keys[0]].shape
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=state[keys[2]].shape[0],
        num_hidden_layers=_text_layers(state),
        num_attention_heads=max(1, width // CLIP_HEAD),
        max_position_embeddings=state[keys[1]].shape[0],
        hidden_act="gelu",
        projection_dim=width,
    )


def _text_layers(state: Mapping[str, Tensor]) -> int:
    """Return the number of the last layer, which is how many are used."""
    return max((int(found[1]) for key in state if (found := _LAYER.fullmatch(key))), default=0)


# What else the checkpoint holds: tables made from the schedule, and averages that are not used.
_OTHERS = re.compile(
    r"betas|scale_arr|scale_factor|logvar|lvlb_weights|.*alphas_cumprod.*|posterior_.*|model_ema\..*"
)


def split_checkpoint(
    state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Divide the released table into denoiser, autoencoder and text tower, prefixes removed.

    Raises:
        UserError: One of them is missing, or there are keys of another model.
    """
    prefixes = {UNET: "denoiser", VAE: "autoencoder", TEXT: "text tower"}
    parts = {
        prefix: {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        for prefix in prefixes
    }
    unknown = [k for k in state if not k.startswith(tuple(prefixes)) and not _OTHERS.fullmatch(k)]
    lost = [f"no {name} ({prefix}*)" for prefix, name in prefixes.items() if not parts[prefix]]
    faults = [
        *lost,
        *([f"{len(unknown)} unknown keys ({some_of(unknown)})"] if unknown else []),
    ]
    if faults:
        raise UserError(
            f"{source} is not VideoCrafter2's checkpoint: it has {', '.join(faults)}; give its model.ckpt"
        )
    return parts[UNET], parts[VAE], parts[TEXT]


def table_of(content: Any) -> Any:
    """Return the table of tensors in a checkpoint: itself, its ``state_dict``, or ``module``.

    The latter is what DeepSpeed writes, every key behind ``_forward_module.``.
    """
    if not isinstance(content, Mapping) or all(isinstance(v, Tensor) for v in content.values()):
        return content
    if "state_dict" in content:
        return content["state_dict"]
    table = content.get("module", content)
    if not isinstance(table, Mapping):
        return table
    return {str(key).removeprefix("_forward_module."): value for key, value in table.items()}


def _need(state: Mapping[str, Tensor], keys: tuple[str, ...], source: str, what: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing or not keys:
        raise UserError(
            f"{source} does not hold a {what}: it has no {some_of(missing)} among its "
            f"{len(state)} keys; give VideoCrafter2's model.ckpt"
        )
