"""Wan2.1's denoiser with one noise level and one temporal position per frame.

diffusers' ``WanTransformer3DModel.forward`` takes one timestep per video, or one per token, which
at 480x832 means a 1.15 GiB modulation table for every block. Here the same submodules are walked
with one modulation per frame, broadcast over the frame's tokens: the same numbers, no table.

Shapes: B batch, F latent frames, C channels, H, W latent size, L = H/2 * W/2 tokens of a frame,
S text rows, D text width, d model width, a attention head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from miga_bench.backbones.base import AttentionSite, FrameAttention, Rows, Shortcut
from miga_bench.backbones.open_attention import OpenAttention
from miga_bench.backbones.rotary import Rotary


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighboring channel pairs of ``x`` ``[B, N, heads, a]`` by the given angles."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).type_as(x)


def _attend(
    attention: Any,
    x: Tensor,
    context: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    instead: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Run one ``WanAttention`` on ``x`` ``[B, N, d]`` over ``context`` ``[B, M, d]``.

    ``instead`` stands in for the attention between the projections, ``[B, N, heads, a]`` each.
    """
    heads = (attention.heads, -1)
    query = attention.norm_q(attention.to_q(x)).unflatten(2, heads)
    key = attention.norm_k(attention.to_k(context)).unflatten(2, heads)
    value = attention.to_v(context).unflatten(2, heads)
    if rotary is not None:
        query, key = rotate(query, *rotary), rotate(key, *rotary)
    if instead is not None:
        return attention.to_out[0](instead(query, key, value).flatten(2))
    out = nnf.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return attention.to_out[0](out.transpose(1, 2).flatten(2))


def _by_frame(
    query: Tensor, key: Tensor, value: Tensor, attention: FrameAttention, site: AttentionSite
) -> Tensor:
    """Run a method's attention on tokens ``[B, F * P, heads, a]`` of all frames."""
    frames = site.timesteps.shape[1]
    query, key, value = (x.unflatten(1, (frames, -1)) for x in (query, key, value))
    return attention(query, key, value, site).flatten(1, 2)


@dataclass(frozen=True)
class _Call:
    """What all blocks need to know of one forward.

    Attributes:
        frames: F.
        modulation: ``[B, F, 6, d]`` float32.
        context: ``[B, S, d]``.
        rotary: Cosines and sines, ``[1, F * L, 1, a / 2]`` each.
        site: Where self-attention is.
        attention: Stands in for self-attention, if given.
    """

    frames: int
    modulation: Tensor
    context: Tensor
    rotary: tuple[Tensor, Tensor]
    site: AttentionSite
    attention: FrameAttention | None

    def of(self, rows: Rows) -> _Call:
        """Return the same for some of the rows."""
        return replace(
            self,
            modulation=self.modulation[rows],
            context=self.context[rows],
            site=replace(self.site, timesteps=self.site.timesteps[rows]),
        )

    @property
    def instead(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """What stands in for self-attention between the projections."""
        if self.attention is None:
            return None
        return partial(_by_frame, attention=self.attention, site=self.site)


class WanNetwork(nn.Module):
    """The network itself, rotary tables given: what is compiled and exported."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention: FrameAttention | None = None,
        shortcut: Shortcut | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latents: ``[B, C, F, H, W]``, any float type.
            timesteps: ``[B, F]`` float32 in ``[0, 1000]``.
            text: ``[B, S, D]``.
            cos: ``[1, F * L, 1, a / 2]`` float32, see ``Rotary``.
            sin: As ``cos``.
            attention: Stands in for every block's self-attention.
            shortcut: May leave out all blocks but the first.

        Returns:
            ``[B, C, F, H, W]`` in the latents' type.
        """
        net: Any = self.transformer
        dtype = net.patch_embedding.weight.dtype
        frames = latents.shape[2]
        _, patch_height, patch_width = net.config.patch_size

        patches = net.patch_embedding(latents.to(dtype))  # [B, d, F, H/2, W/2]
        rows, columns = patches.shape[3:]
        # as the authors do: rounded after every block, the sum would lose what guidance then magnifies
        hidden = patches.flatten(2).transpose(1, 2).contiguous().float()
        embedded, modulation, context, _ = net.condition_embedder(
            timesteps.flatten(), text.to(dtype), None, timestep_seq_len=frames
        )
        modulation = modulation.unflatten(2, (6, -1)).float()  # [B, F, 6, d]
        site = AttentionSite(rows, columns, True, patch_height, timesteps)
        call = _Call(frames, modulation, context, (cos, sin), site, attention)
        if shortcut is None:
            hidden = self._blocks(net.blocks, hidden, call)
        else:
            hidden = self._shortened(shortcut, hidden, call)

        # [B, F, 2, d] -> two of [B, F, 1, d]
        shift, scale = (net.scale_shift_table[:, None] + embedded[:, :, None]).chunk(2, dim=2)
        hidden = self._modulate(net.norm_out, hidden, shift, scale, frames)
        head = net.proj_out
        out = head(hidden.to(head.weight.dtype))  # [B, F * L, 2 * 2 * C]
        out = out.unflatten(1, (frames, rows, columns))
        out = out.unflatten(4, (patch_height, patch_width, -1)).permute(0, 6, 1, 2, 4, 3, 5)
        return out.flatten(5, 6).flatten(3, 4).to(latents.dtype)

    @staticmethod
    def _modulate(
        norm: nn.Module, hidden: Tensor, shift: Tensor, scale: Tensor, frames: int
    ) -> Tensor:
        """Normalize ``[B, F * L, d]`` in float32, then scale and shift each frame by its own."""
        normed = norm(hidden).unflatten(1, (frames, -1))
        return torch.addcmul(shift, normed, 1 + scale).flatten(1, 2)

    @staticmethod
    def _add_gated(hidden: Tensor, update: Tensor, gate: Tensor, frames: int) -> Tensor:
        """Add ``update`` ``[B, F * L, d]``, weighted per frame by ``gate`` ``[B, F, 1, d]``."""
        wide = hidden.unflatten(1, (frames, -1))
        update = update.float().unflatten(1, (frames, -1))
        return torch.addcmul(wide, update, gate).flatten(1, 2)

    def _blocks(self, blocks: Iterable[Any], hidden: Tensor, call: _Call) -> Tensor:
        """Take ``[B, F * L, d]`` through blocks."""
        for block in blocks:
            hidden = self._block(block, hidden, call)
        return hidden

    def _shortened(self, shortcut: Shortcut, before: Tensor, call: _Call) -> Tensor:
        """Take ``[B, F * L, d]`` through the first block, and through the others as ``shortcut`` has it."""
        net: Any = self.transformer
        first, *others = net.blocks
        after = self._block(first, before, call)

        def rest(rows: Rows) -> Tensor:
            return by_frame(self._blocks(others, after[rows], call.of(rows)))

        def by_frame(hidden: Tensor) -> Tensor:
            return hidden.unflatten(1, (call.frames, -1))

        return shortcut(by_frame(before), by_frame(after), rest).flatten(1, 2)

    def _block(self, block: Any, hidden: Tensor, call: _Call) -> Tensor:
        """Take float32 ``[B, F * L, d]`` through a block, whose layers see it in the context's type."""
        frames, dtype = call.frames, call.context.dtype
        table = block.scale_shift_table[:, None] + call.modulation
        shift, scale, gate, shift_ff, scale_ff, gate_ff = table.chunk(6, dim=2)

        normed = self._modulate(block.norm1, hidden, shift, scale, frames).to(dtype)
        attended = _attend(block.attn1, normed, normed, call.rotary, call.instead)
        hidden = self._add_gated(hidden, attended, gate, frames)

        normed = block.norm2(hidden).to(dtype)
        hidden = hidden + _attend(block.attn2, normed, call.context, None)

        normed = self._modulate(block.norm3, hidden, shift_ff, scale_ff, frames).to(dtype)
        return self._add_gated(hidden, block.ffn(normed), gate_ff, frames)


class WanDenoiser(OpenAttention):
    """``WanTransformer3DModel`` behind the ``Denoiser`` interface.

    What does the attention over frames in its place does the blocks' self-attention: its queries and keys come
    normalized and rotated. Attention to the text is left alone.

    Attributes:
        network: The part with weights, free of table building; compile or export this one:
            ``denoiser.network.compile()``.
        rotary: Builder of the rotary tables.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        config: Any = transformer.config  # type: ignore[attr-defined]
        if config.patch_size[0] != 1 or config.image_dim is not None:
            raise ValueError("a text-to-video Wan transformer with temporal patch size 1 is needed")
        self.network = WanNetwork(transformer)
        self.rotary = Rotary(config.attention_head_dim, *config.patch_size[1:])

    @property
    def transformer(self) -> WanTransformer3DModel:
        """The diffusers module that owns the weights."""
        return self.network.transformer

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        *,
        shortcut: Shortcut | None = None,
    ) -> Tensor:
        """Predict the velocity ``noise - clean``.

        Args:
            latents: ``[B, C, F, H, W]`` at mixed noise levels.
            timesteps: ``[B, F]`` float32 in ``[0, 1000]``, one per frame.
            text: ``[B, S, D]`` prompt embeddings.
            shortcut: May leave out all blocks but the first.

        Returns:
            ``[B, C, F, H, W]`` in the latents' type.
        """
        cos, sin = self.rotary(latents)
        if self._attention is None and shortcut is None:
            return self.network(latents, timesteps, text, cos, sin)
        return self.network(latents, timesteps, text, cos, sin, self._attention, shortcut)


def is_ours(denoiser: object) -> bool:
    """Return whether a denoiser is this module's, network and all."""
    return isinstance(denoiser, WanDenoiser) and isinstance(denoiser.network, WanNetwork)
