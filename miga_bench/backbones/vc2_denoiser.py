"""VideoCrafter2's denoiser with one noise level per frame, and its frames' attention within reach.

The network is diffusers' ``UNet3DConditionModel`` with an embedding of the frame rate added. Its
submodules are walked here, which diffusers' own forward and VideoCrafter's leave no room for:

* one timestep per frame;
* a cut: leading guidance frames that the others attend to, but that are no neighbors of theirs
  for the convolutions over time and count in no norm of theirs;
* an attention of one's own in the place of that over frames.

Nothing is installed in modules for that: what a call needs travels with the call. The time embedding
has no position in it and neither has the attention over frames; order is felt through the
convolutions over time alone.

Shapes: B batch, F latent frames, C channels, H, W latent size; within the network N = B * F images,
h, w the level's size, P = h * w, S text rows, D text width, a attention head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor

from miga_bench.backbones.base import AttentionSite, FrameAttention, Rows, Shortcut
from miga_bench.backbones.fused_attention import fused_attention
from miga_bench.backbones.open_attention import OpenAttention

# Parts whose parameters stay float32 whatever the type of the rest: they see timesteps.
KEEP_FLOAT32 = ("time_embedding", "fps_embedding")


@dataclass(frozen=True)
class _Call:
    """What all layers over time need to know of one forward.

    Attributes:
        frames: F.
        cut: Leading frames that are a clip of their own; 0 for none.
        rows: H, height of the latents.
        timesteps: ``[B, F]``.
        attention: Stands in for the attention over frames, if given.
    """

    frames: int
    cut: int
    rows: int
    timesteps: Tensor
    attention: FrameAttention | None


class TextAttention(AttnProcessor2_0):
    """Attention of images ``[N, P, d]`` to texts ``[B, S, D]``, one for each of B clips.

    The images of a clip share the keys and values of its text, so they are one sequence of places.
    """

    def __call__(  # type: ignore[override]  # noqa: D102 - the interface is diffusers'
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        places = hidden_states
        if encoder_hidden_states is not None:
            places = hidden_states.reshape(
                encoder_hidden_states.shape[0], -1, hidden_states.shape[-1]
            )
        out: Tensor = super().__call__(attn, places, encoder_hidden_states, attention_mask)
        return out.reshape(hidden_states.shape)


class VideoCrafterUNet(UNet3DConditionModel):
    """The network: what is trained, compiled and exported. Its defaults are VideoCrafter2's.

    Any number of levels will do; the last has no attention of its own, the middle has. Latents'
    height and width must be multiples of ``2 ** (levels - 1)``.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        temporal_heads: int = 8,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        down_block_types: tuple[str, ...] | None = None,
        up_block_types: tuple[str, ...] | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            in_channels: Of the latents.
            out_channels: Of the prediction.
            block_out_channels: Width of each level, finest first; the number of levels is free.
            layers_per_block: Residual blocks per level on the way down; one more on the way up.
            cross_attention_dim: D.
            attention_head_dim: a, everywhere; a level has width / a heads.
            temporal_heads: Heads of the first temporal transformer, which is ``temporal_heads * a``
                wide inside whatever the width of its level.
            norm_num_groups: Groups of every group norm; divides all widths.
            norm_eps: Of the group norms of residual blocks and output.
            down_block_types: diffusers' names of the levels' blocks; None is as described above.
            up_block_types: As ``down_block_types``, coarsest first.
        """
        levels = len(block_out_channels)
        down = down_block_types or ("CrossAttnDownBlock3D",) * (levels - 1) + ("DownBlock3D",)
        up = up_block_types or ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * (levels - 1)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
        )
        width = block_out_channels[0]
        net: Any = self
        net.fps_embedding = TimestepEmbedding(width, 4 * width)
        for block in (*net.down_blocks, net.mid_block, *net.up_blocks):
            for transformer in getattr(block, "attentions", ()):
                for layer in transformer.transformer_blocks:
                    layer.attn2.set_processor(TextAttention())
        if temporal_heads != net.transformer_in.num_attention_heads:
            net.transformer_in = TransformerTemporalModel(
                num_attention_heads=temporal_heads,
                attention_head_dim=attention_head_dim,
                in_channels=width,
                num_layers=1,
                norm_num_groups=norm_num_groups,
            )

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        fps: Tensor | float,
        *,
        cut: int = 0,
        attention: FrameAttention | None = None,
        shortcut: Shortcut | None = None,
    ) -> Tensor:
        """Predict eps.

        Args:
            latents: ``[B, C, F, H, W]``, any float type.
            timesteps: ``[B, F]``, or ``[B]`` for all frames alike, in ``[0, 1000]``.
            text: ``[B, S, D]``.
            fps: The clip's frame rate, one number or ``[B]``.
            cut: The first ``cut`` frames are guidance frames, see the module.
            attention: Stands in for both attentions over frames of every temporal transformer.
            shortcut: May leave out all between the first residual block, with the attentions that
                follow it, and the output layers.

        Returns:
            ``[B, C, F, H, W]`` in the latents' type.

        Raises:
            ValueError: ``cut`` is more than there are frames.
        """
        batch, _, frames, rows, _ = latents.shape
        if not 0 <= cut <= frames:
            raise ValueError(
                f"cut is {cut}: it must lie between 0 and the window's {frames} frames"
            )
        if timesteps.dim() == 1:
            timesteps = timesteps[:, None].expand(batch, frames)
        net: Any = self
        dtype = net.conv_in.weight.dtype
        call = _Call(frames, cut % frames, rows, timesteps, attention)
        embedded = self._embed(timesteps, fps).to(dtype)  # [N, 4 * width]
        context = text.to(dtype)

        hidden = net.conv_in(latents.to(dtype).transpose(1, 2).flatten(0, 1))
        skips = [_attend_over_time(net.transformer_in, hidden, call)]
        skips.append(_layer(net.down_blocks[0], 0, skips[0], embedded, context, call))
        if shortcut is None:
            hidden = self._rest(skips, embedded, context, call)
        else:
            hidden = self._shortened(shortcut, skips, embedded, context, call)

        hidden = net.conv_out(nnf.silu(net.conv_norm_out(hidden)))
        return hidden.unflatten(0, (batch, frames)).transpose(1, 2).to(latents.dtype)

    def _rest(self, skips: list[Tensor], embedded: Tensor, context: Tensor, call: _Call) -> Tensor:
        """Go from the first residual block on to the output layers, ``[N, C, H, W]``.

        Args:
            skips: What the first block was given and what it made of it; is emptied.
            embedded: See ``_embed``.
            context: ``[B, S, D]``.
            call: Of the same rows.
        """
        net: Any = self
        hidden = skips[-1]
        for level, block in enumerate(net.down_blocks):
            for layer in range(0 if level else 1, len(block.resnets)):
                hidden = _layer(block, layer, hidden, embedded, context, call)
                skips.append(hidden)
            if block.downsamplers is not None:
                hidden = block.downsamplers[0](hidden)
                skips.append(hidden)

        hidden = _residual(net.mid_block, 0, hidden, embedded, call)
        for layer in range(len(net.mid_block.attentions)):
            hidden = _attend(net.mid_block, layer, hidden, context, call)
            hidden = _residual(net.mid_block, layer + 1, hidden, embedded, call)

        for block in net.up_blocks:
            for layer in range(len(block.resnets)):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
                hidden = _layer(block, layer, hidden, embedded, context, call)
            if block.upsamplers is not None:
                hidden = block.upsamplers[0](hidden)
        return hidden

    def _shortened(
        self,
        shortcut: Shortcut,
        begun: Sequence[Tensor],
        embedded: Tensor,
        context: Tensor,
        call: _Call,
    ) -> Tensor:
        """Do as ``_rest``, or what ``shortcut`` does instead; ``begun`` are its ``skips``."""

        def by_frame(images: Tensor) -> Tensor:
            return images.unflatten(0, (-1, call.frames))

        def rest(rows: Rows) -> Tensor:
            some = [by_frame(images)[rows].flatten(0, 1) for images in (*begun, embedded)]
            *skips, hidden = some
            part = replace(call, timesteps=call.timesteps[rows])
            return by_frame(self._rest(skips, hidden, context[rows], part))

        before, after = begun
        return shortcut(by_frame(before), by_frame(after), rest).flatten(0, 1)

    def _embed(self, timesteps: Tensor, fps: Tensor | float) -> Tensor:
        """Return the embeddings ``[N, 4 * width]`` of levels ``[B, F]`` and rates."""
        net: Any = self
        batch, frames = timesteps.shape
        if not isinstance(fps, Tensor):
            fps = torch.full((batch,), float(fps), device=timesteps.device)
        kept = net.time_embedding.linear_1.weight.dtype
        time = net.time_embedding(net.time_proj(timesteps.flatten()).to(kept))
        rate = net.fps_embedding(net.time_proj(fps.expand(batch)).to(kept))
        return time + rate[:, None].expand(-1, frames, -1).flatten(0, 1)


def _layer(
    block: Any, layer: int, hidden: Tensor, embedded: Tensor, context: Tensor, call: _Call
) -> Tensor:
    """Run one residual block ``[N, C, h, w]`` with the attentions that follow it, if any do."""
    hidden = _residual(block, layer, hidden, embedded, call)
    if hasattr(block, "attentions"):
        hidden = _attend(block, layer, hidden, context, call)
    return hidden


def _residual(block: Any, layer: int, hidden: Tensor, embedded: Tensor, call: _Call) -> Tensor:
    """Run one residual block over images and its convolutions over time."""
    hidden = block.resnets[layer](hidden, embedded)
    convolutions = block.temp_convs[layer]
    clip = _clips(hidden, call)
    for name in ("conv1", "conv2", "conv3", "conv4"):
        clip = _by_segment(getattr(convolutions, name), clip, call)
    return _add(hidden, clip.transpose(1, 2))


def _attend(block: Any, layer: int, hidden: Tensor, context: Tensor, call: _Call) -> Tensor:
    """Attend within images and to the text, then over frames."""
    (hidden,) = block.attentions[layer](hidden, context, return_dict=False)
    return _attend_over_time(block.temp_attentions[layer], hidden, call)


def _clips(hidden: Tensor, call: _Call) -> Tensor:
    """View images ``[N, C, h, w]`` as clips ``[B, C, F, h, w]``."""
    return hidden.unflatten(0, (-1, call.frames)).transpose(1, 2)


def _add(hidden: Tensor, update: Tensor) -> Tensor:
    """Add ``[B, F, C, h, w]`` to images ``[N, C, h, w]``; no permuted update is copied first."""
    return (hidden.unflatten(0, update.shape[:2]) + update).flatten(0, 1)


def _by_segment(layer: Callable[[Tensor], Tensor], clip: Tensor, call: _Call) -> Tensor:
    """Run a layer that mixes frames, clips ``[B, C, F, h, w]``, on either side of the cut."""
    if not call.cut:
        return layer(clip)
    before, after = clip[:, :, : call.cut], clip[:, :, call.cut :]
    return torch.cat([layer(before), layer(after)], dim=2)


def _attend_over_time(transformer: Any, hidden: Tensor, call: _Call) -> Tensor:
    """Run one temporal transformer on images ``[N, C, h, w]``: each place attends over frames."""
    rows, columns = hidden.shape[2:]
    site = AttentionSite(rows, columns, False, call.rows // rows, call.timesteps)
    clip = _by_segment(transformer.norm, _clips(hidden, call), call)
    places = clip.flatten(3).permute(0, 3, 2, 1)  # [B, P, F, C]
    # contiguous: of a permuted view torch makes a matrix product for each place, and the bias apart
    tokens = transformer.proj_in(places.contiguous())  # [B, P, F, d]
    for block in transformer.transformer_blocks:
        tokens = tokens + _attention(block.attn1, block.norm1(tokens), site, call)
        tokens = tokens + _attention(block.attn2, block.norm2(tokens), site, call)
        tokens = tokens + block.ff(block.norm3(tokens))
    out = transformer.proj_out(tokens).permute(0, 2, 3, 1)  # [B, F, C, P]
    return _add(hidden, out.unflatten(3, (rows, columns)))


def _attention(attention: Any, tokens: Tensor, site: AttentionSite, call: _Call) -> Tensor:
    """Run one self-attention over the frames of tokens ``[B, P, F, d]``."""
    heads = (attention.heads, -1)
    query, key, value = (
        project(tokens).unflatten(3, heads)  # [B, P, F, heads, a]
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    if call.attention is not None:
        out = call.attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), site
        ).transpose(1, 2)
    else:
        # Fused kernels want four dimensions: [B * P, heads, F, a].
        out = fused_attention(*(part.flatten(0, 1).transpose(1, 2) for part in (query, key, value)))
        out = out.transpose(1, 2).unflatten(0, tokens.shape[:2])
    return attention.to_out[0](out.flatten(3))


class VideoCrafterDenoiser(OpenAttention):
    """``VideoCrafterUNet`` behind the ``Denoiser`` interface.

    Several may share a network and differ in the rest.

    Attributes:
        network: The part with weights; compile or export this one: ``denoiser.network.compile()``.
        fps: Frame rate the network is told.
    """

    def __init__(self, network: VideoCrafterUNet, fps: float = 8.0) -> None:
        super().__init__()
        self.network: Any = network
        self.fps = fps

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        *,
        cut: int = 0,
        shortcut: Shortcut | None = None,
    ) -> Tensor:
        """Predict eps.

        Args:
            latents: ``[B, C, F, H, W]`` at mixed noise levels.
            timesteps: ``[B, F]`` float32 in ``[0, 1000]``, one per frame.
            text: ``[B, S, D]`` prompt embeddings.
            cut: The first ``cut`` frames are guidance frames: all frames attend to them, but
                convolutions and norms over time treat them as a clip of their own.
            shortcut: See ``VideoCrafterUNet``.

        Returns:
            ``[B, C, F, H, W]`` in the latents' type.
        """
        return self.network(
            latents,
            timesteps,
            text,
            self.fps,
            cut=cut,
            attention=self._attention,
            shortcut=shortcut,
        )
