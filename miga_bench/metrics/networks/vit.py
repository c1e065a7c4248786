"""The vision transformer that DINO, DINOv2 and CLIP have in common.

Dosovitskiy et al., ICLR 2021. What differs is read off the published tensors: sizes, a norm before
the blocks (CLIP), scales of the branches (DINOv2), a projection at the end (CLIP). Every head is 64
wide in all of them. Only the class token leaves the network, so the last block computes no other.

Shapes: B pictures, N tokens (class token first), D width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from miga_bench.errors import UserError
from miga_bench.metrics.networks.weight_files import fill

HEAD_WIDTH = 64


class Norm(nn.LayerNorm):
    """Computes in float32 whatever the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[..., D]``."""
        return super().forward(x.float()).to(x.dtype)


class Block(nn.Module):
    """Attention and a perceptron, each on normed tokens beside the residual stream."""

    def __init__(self, width: int, eps: float, quick: bool, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width, eps), Norm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.scale2 = nn.Parameter(torch.ones(width)) if scaled else None
        self.quick = quick

    def forward(self, x: Tensor, leave: int | None = None) -> Tensor:
        """Return the tokens ``[B, N, D]``; only the first ``leave`` of them if that is given."""
        batch, _, width = x.shape
        normed = self.norm1(x)
        weight, bias = self.qkv.weight, self.qkv.bias
        q = functional.linear(normed[:, :leave], weight[:width], bias[:width])
        k, v = functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        heads = (part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(*heads)
        branch = self.proj(mixed.transpose(1, 2).reshape(batch, -1, width))
        x = x[:, :leave] + (branch if self.scale1 is None else branch * self.scale1)
        hidden = self.fc1(self.norm2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else functional.gelu(hidden)
        branch = self.fc2(hidden)
        return x + (branch if self.scale2 is None else branch * self.scale2)


class VisionTransformer(nn.Module):
    """Pictures to class tokens; made by ``from_dino`` and ``from_clip``."""

    def __init__(self, state: Mapping[str, Tensor], eps: float, quick: bool) -> None:
        super().__init__()
        width, _, patch, _ = state["patches.weight"].shape
        if width % HEAD_WIDTH:
            raise UserError(f"a vision transformer of width {width}; it must be a multiple of 64")
        layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        self.patches = nn.Conv2d(3, width, patch, patch, bias="patches.bias" in state)
        self.first = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty_like(state["positions"]))
        self.pre = Norm(width, eps) if "pre.weight" in state else nn.Identity()
        block = partial(Block, width, eps, quick, "blocks.0.scale1" in state)
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.post = Norm(width, eps)
        self.out = nn.Parameter(torch.empty_like(state["out"])) if "out" in state else None
        self._positions_at: tuple[tuple[int, int], Tensor] | None = None

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.patches.kernel_size[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features ``[B, D]`` of normalized pictures ``[B, 3, H, W]``."""
        x = self.patches(pixels.to(self.patches.weight.dtype))
        grid = (x.shape[-2], x.shape[-1])
        first = self.first.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)
        positions = self._at(grid, even=pixels.shape[-2] == pixels.shape[-1])
        x = self.pre(x + positions.to(x.dtype))
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.post(self.blocks[-1](x, leave=1)[:, 0])
        return x if self.out is None else x @ self.out.to(x.dtype)

    def in_precision(self, dtype: torch.dtype) -> VisionTransformer:
        """Compute in ``dtype``, norms and positions excepted, as CLIP does in float16."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        return self

    def _at(self, grid: tuple[int, int], even: bool) -> Tensor:
        """Return the positions ``[1 + h*w, D]`` of a grid of another shape than trained on.

        The tenth of a patch is DINO's guard against rounding; it shifts where positions are read,
        so it belongs to the network. So does that a picture of 225 x 224 pixels, whose grid is the
        trained one, is read like that too.
        """
        side = math.isqrt(len(self.positions) - 1)
        if even and grid == (side, side):
            return self.positions
        key = self._positions_at
        if key is None or key[0] != grid or key[1].device != self.positions.device:
            square = self.positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            factors = [(length + 0.1) / side for length in grid]
            read = functional.interpolate(square, scale_factor=factors, mode="bicubic")
            read = torch.cat([self.positions[:1], read[0].flatten(1).T])
            self._positions_at = key = (grid, read)
        return key[1]


_DINO = [
    (r"^cls_token$", "first"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    (r"^blocks\.(\d+)\.attn\.", r"blocks.\1."),
    (r"^blocks\.(\d+)\.mlp\.", r"blocks.\1."),
    (r"^blocks\.(\d+)\.ls(\d)\.gamma$", r"blocks.\1.scale\2"),
    (r"^norm\.", "post."),
]
_CLIP = [
    (r"^class_embedding$", "first"),
    (r"^positional_embedding$", "positions"),
    (r"^conv1\.", "patches."),
    (r"^ln_pre\.", "pre."),
    (r"^ln_post\.", "post."),
    (r"^proj$", "out"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"^(blocks\.\d+)\.attn\.in_proj_", r"\1.qkv."),
    (r"^(blocks\.\d+)\.attn\.out_proj\.", r"\1.proj."),
    (r"^(blocks\.\d+)\.ln_", r"\1.norm"),
    (r"^(blocks\.\d+)\.mlp\.c_fc\.", r"\1.fc1."),
    (r"^(blocks\.\d+)\.mlp\.c_proj\.", r"\1.fc2."),
]


def from_dino(state: Mapping[str, Tensor], network: str) -> VisionTransformer:
    """Make the transformer of a DINO or DINOv2 state dict.

    Raises:
        UserError: It is none.
    """
    # DINOv2's mask token is for training only; blocks may be in chunks, whose keys name the chunk
    kept = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in state.items()}
    kept.pop("mask_token", None)
    renamed = _renamed(kept, _DINO)
    for name in ("first", "positions"):
        if name in renamed:
            renamed[name] = renamed[name].reshape(-1, renamed[name].shape[-1])
    if "first" in renamed:
        renamed["first"] = renamed["first"][0]
    return _made(renamed, network, eps=1e-6, quick=False)


def from_clip(state: Mapping[str, Tensor], network: str) -> VisionTransformer:
    """Make the vision tower of a CLIP state dict in OpenAI's naming, text tower included or not.

    Raises:
        UserError: It is none.
    """
    if any(key.startswith("visual.") for key in state):
        state = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    return _made(_renamed(state, _CLIP), network, eps=1e-5, quick=True)


def _renamed(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor.float()
    return renamed


def _made(state: dict[str, Tensor], network: str, eps: float, quick: bool) -> VisionTransformer:
    needed = ("patches.weight", "positions", "first", "post.weight", "blocks.0.norm1.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(f"these are no weights of {network}: {', '.join(missing)} is missing")
    model = VisionTransformer(state, eps, quick)
    fill(model, state, network)
    return model
