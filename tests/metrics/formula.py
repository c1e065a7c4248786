"""Weights and clips that every machine makes alike: whole-number arithmetic, no random generator."""

import hashlib
import math

import numpy as np
import torch
from torch import nn

_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def numbers(name, count):
    """``count`` numbers in [0, 1) that belong to a name: SplitMix64 from the name's hash on."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) & _MASK
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def state(name, shapes):
    """Weights that belong to a name, about as large as trained ones: shapes by key to tensors."""
    made = {}
    for key, shape in shapes.items():
        drawn = 2 * numbers(f"{name} {key}", math.prod(shape)) - 1
        if len(shape) < 2:
            around_one = key.endswith(("weight", "running_var", "gamma"))
            drawn = 0.1 * drawn + float(around_one)
        elif any(part in key for part in ("pos", "cls", "embedding")):
            drawn = 0.5 * drawn
        else:
            drawn = drawn * math.sqrt(3 / math.prod(shape[1:]))
        made[key] = torch.from_numpy(drawn).reshape(shape).float()
    return made


def fill(module, name):
    """Give a module the weights that belong to a name and return it."""
    found = module.state_dict()
    real = {key: tuple(t.shape) for key, t in found.items() if t.is_floating_point()}
    module.load_state_dict(found | state(name, real))
    return module.eval().requires_grad_(False)


def dino_shapes(width=128, layers=2):
    """Shapes of DINO's tensors by their original names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    return shapes | _block_shapes("blocks", "norm", sizes, width, layers)


def clip_shapes(patch=32, width=128, layers=2, embed=64):
    """Shapes of the tensors of CLIP's vision tower by their original names."""
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    sizes = {
        "attn.in_proj": (3, 1),
        "attn.out_proj": (1, 1),
        "mlp.c_fc": (4, 1),
        "mlp.c_proj": (1, 4),
    }
    blocks = _block_shapes("visual.transformer.resblocks", "ln_", sizes, width, layers)
    return shapes | {key.replace("in_proj.", "in_proj_"): shape for key, shape in blocks.items()}


def _block_shapes(prefix, norm, sizes, width, layers):
    shapes = {}
    for layer in range(layers):
        for number in (1, 2):
            for kind in ("weight", "bias"):
                shapes[f"{prefix}.{layer}.{norm}{number}.{kind}"] = (width,)
        for name, (out, into) in sizes.items():
            shapes[f"{prefix}.{layer}.{name}.weight"] = (out * width, into * width)
            shapes[f"{prefix}.{layer}.{name}.bias"] = (out * width,)
    return shapes


# name: frames, height, width, frames per second; odd and even lengths and sizes
CLIPS = {
    "wide-even": (8, 64, 96, 8),
    "tall-odd": (7, 101, 75, 24),
    "square-three": (3, 60, 60, 10),
    "nearly-square": (4, 129, 128, 10),
}
AMT_CLIPS = {"padded": (6, 133, 150, 8), "whole": (5, 128, 144, 8)}


def clip(name, frames, height, width):
    """A clip, uint8 ``[frames, 3, height, width]``: a moving square on a grainy, drifting ground.

    Halfway there is a cut, so that frames are neither all alike nor all different.
    """
    grain = (numbers(name, 3 * height * width) * 32).astype(np.int64).reshape(3, height, width)
    y, x = np.mgrid[:height, :width]
    video = np.empty((frames, 3, height, width), np.uint8)
    for t in range(frames):
        scene = 2 * t >= frames
        for channel in range(3):
            wave = (3 * x + (5 - 4 * scene) * y + 7 * t + 60 * channel) % 448
            video[t, channel] = np.minimum(wave, 447 - wave) + grain[channel]
        left = (5 * t) % max(width - 24, 1)
        video[t, scene, height // 3 : height // 3 + 20, left : left + 24] = 250
    return torch.from_numpy(video)


class Blur(nn.Module):
    """An interpolation network with AMT's interface that feels padding."""

    def forward(self, first, second, embt, scale_factor=1.0, eval=True):
        blend = (0.75 * first + 0.25 * second) * (0.5 + embt)
        return {"imgt_pred": nn.functional.avg_pool2d(blend, 5, 1, 2, count_include_pad=False)}
