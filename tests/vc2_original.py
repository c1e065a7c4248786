"""VideoCrafter2 models under their original names: the inverse of what is loaded."""

import re

import torch

_HEADS = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("fps_embedding.linear_1", "fps_embedding.0"),
    ("fps_embedding.linear_2", "fps_embedding.2"),
    ("conv_in", "input_blocks.0.0"),
    ("transformer_in", "init_attn.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
]
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PLACES = {"attentions": 1, "temp_attentions": 2}


def original_unet(state):
    """Rename a denoiser's keys; numbers follow the order in which the original runs its layers."""
    count = 1 + max(int(key.split(".")[3]) for key in state if key.startswith("down_blocks.0.resn"))
    attended = {key.split(".")[1] for key in state if re.match(r"up_blocks\.\d\.attentions", key)}

    def part_of(part):
        kind, layer, rest = part.split(".", 2)
        if kind == "temp_convs":
            return int(layer), f"0.temopral_conv.{rest}"
        if kind == "resnets":
            name, end = rest.split(".")
            return int(layer), f"0.{_RESIDUAL[name]}.{end}"
        return int(layer), f"{_PLACES[kind]}.{rest}"

    def rename(key):
        for ours, theirs in _HEADS:
            if key.startswith(f"{ours}."):
                return key.replace(ours, theirs, 1)
        side, rest = key.split(".", 1)
        if side == "mid_block":
            layer, name = part_of(rest)
            place, name = name.split(".", 1)
            return f"middle_block.{3 * layer + int(place)}.{name}"
        level, part = rest.split(".", 1)
        if part.startswith("downsamplers.0.conv"):
            return f"input_blocks.{(int(level) + 1) * (count + 1)}.0.op.{part[20:]}"
        if part.startswith("upsamplers.0.conv"):
            place = 3 if level in attended else 1
            return f"output_blocks.{int(level) * (count + 1) + count}.{place}.conv.{part[18:]}"
        layer, name = part_of(part)
        number = int(level) * (count + 1) + layer + (side == "down_blocks")
        return f"{'in' if side == 'down_blocks' else 'out'}put_blocks.{number}.{name}"

    original = {}
    for key, tensor in state.items():
        if re.match(r"transformer_in\.proj_.*weight", key) and tensor.dim() == 2:
            tensor = tensor[:, :, None]
        original[rename(key)] = tensor
    return original


def original_vae(state):
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down_blocks")})
    rules = [
        (r"\.down_blocks\.(\d)\.resnets\.(\d)", r".down.\1.block.\2"),
        (r"\.down_blocks\.(\d)\.downsamplers\.0", r".down.\1.downsample"),
        (
            r"\.up_blocks\.(\d)\.resnets\.(\d)",
            lambda m: f".up.{levels - 1 - int(m[1])}.block.{m[2]}",
        ),
        (r"\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f".up.{levels - 1 - int(m[1])}.upsample"),
        (r"\.mid_block\.resnets\.0", ".mid.block_1"),
        (r"\.mid_block\.resnets\.1", ".mid.block_2"),
        (r"\.mid_block\.attentions\.0\.group_norm", ".mid.attn_1.norm"),
        (r"\.mid_block\.attentions\.0\.to_([qkv])", r".mid.attn_1.\1"),
        (r"\.mid_block\.attentions\.0\.to_out\.0", ".mid.attn_1.proj_out"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]
    original = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key):
            tensor = tensor[:, :, None, None]
        original[key] = tensor
    return original


def original_text(state):
    """Rename a text tower's keys and add what OpenCLIP has besides, with one more layer."""
    rules = [
        (r"^embeddings\.token_embedding", "token_embedding"),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^final_layer_norm", "ln_final"),
        (r"^encoder\.layers\.", "transformer.resblocks."),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"self_attn\.out_proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
    ]
    original, packed = {}, {}
    for key, tensor in state.items():
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", key):
            name = f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"
            packed.setdefault(name, {})[found[2]] = tensor
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        original[key] = tensor
    original.update({key: torch.cat([parts[p] for p in "qkv"]) for key, parts in packed.items()})
    layers = 1 + max(int(key.split(".")[2]) for key in original if key.startswith("transformer"))
    for key in [key for key in original if key.startswith("transformer.resblocks.0.")]:
        last = key.replace("resblocks.0", f"resblocks.{layers}")
        original[last] = torch.full_like(original[key], 9.0)  # not to be used
    width = original["ln_final.weight"].shape[0]
    device = original["ln_final.weight"].device
    original["text_projection"] = torch.ones(width, width, device=device)
    original["logit_scale"] = torch.ones((), device=device)
    return original


def original_checkpoint(unet, vae, text):
    """Return the whole published table for three modules."""
    parts = {
        "model.diffusion_model.": original_unet(unet.state_dict()),
        "first_stage_model.": original_vae(vae.state_dict()),
        "cond_stage_model.model.": original_text(text.state_dict()),
    }
    table = {p + key: tensor for p, state in parts.items() for key, tensor in state.items()}
    table["betas"] = torch.zeros(1000)
    table["sqrt_one_minus_alphas_cumprod"] = torch.zeros(1000)
    table["scale_arr"] = torch.ones(1400)
    return table
