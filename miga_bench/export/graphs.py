"""Which graphs a backbone is exported as: the module, its inputs, how they vary, what they are held against.

A graph's module takes tensors by position in the order of ``shapes`` and returns tensors in the order of
``outputs``. Everything at its borders is float32 (tokens are int64), whatever it computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = Mapping[str, int]

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}
MOST_TOKENS = 8192  # of a row of a trial
STORED_TOLERANCE = 1e-3  # a quarter of what the rounding of bfloat16 weights did already


@dataclass(frozen=True)
class Extent:
    """What the exported graphs of a backbone are to take.

    Attributes:
        least: Smallest sizes of ``batch`` and ``frames``.
        usual: What engines are tuned for; where a size is fixed, this one.
        most: Largest sizes.
        dynamic: Which of the two may vary.
        frame_tokens: Tokens of a frame where they attend to one another; 0 does not bound the trials.
    """

    least: Sizes
    usual: Sizes
    most: Sizes
    dynamic: tuple[str, ...]
    frame_tokens: int = 0

    def trials(self) -> list[dict[str, int]]:
        """Return the sizes at which a graph is held against PyTorch: usual, small and odd ones.

        ONNX Runtime on a CPU holds all scores of an attention at once, 51 GB for a row of 21 latents of
        480x832 in Wan2.1-1.3B. Where a usual row is that long, few frames stand for it; none where frames
        are fixed.
        """
        batch, frames = self.usual["batch"], self.usual["frames"]
        wanted = [(1, frames), (batch, frames), (3, self.least["frames"]), (2, frames // 2 + 3)]
        if frames * self.frame_tokens > MOST_TOKENS:
            if "frames" not in self.dynamic:
                return []
            least = self.least["frames"]
            most = max(least, MOST_TOKENS // self.frame_tokens)
            wanted = [(1, most), (2, min(least + 1, most)), (3, least)]
        trials: list[dict[str, int]] = []
        for rows, length in wanted:
            trial = {
                "batch": rows if "batch" in self.dynamic else batch,
                "frames": length if "frames" in self.dynamic else frames,
            }
            if trial not in trials:
                trials.append(trial)
        return trials

    def probe(self) -> dict[str, int] | None:
        """Return the sizes of the row that engines are held against; None if all are too much for a CPU."""
        frames = self.usual["frames"]
        if frames * self.frame_tokens > MOST_TOKENS:
            if "frames" not in self.dynamic:
                return None
            frames = self.least["frames"]
        return {"batch": 1, "frames": frames}


@dataclass
class Graph:
    """One graph to export.

    Attributes:
        name: See ``Sidecar.graph``.
        module: What is traced, in the type it is to compute in.
        reference: Returns the same in float32, loaded when asked for.
        shapes: Shape of each input, see ``Port``.
        outputs: Names of the outputs.
        sample: Returns inputs of given sizes from a generator.
        extent: How sizes vary.
        precision: What it computes in.
        stored: Type of the weights where it is another.
    """

    name: str
    module: nn.Module
    reference: Callable[[], nn.Module]
    shapes: dict[str, list[int | str]]
    outputs: list[str]
    sample: Callable[[Sizes, torch.Generator], tuple[Tensor, ...]]
    extent: Extent
    precision: str
    stored: str | None = None

    @property
    def tolerance(self) -> float:
        """How far the graph may be from its reference, as a share of the largest value."""
        return STORED_TOLERANCE if self.stored else TOLERANCE[self.precision]

    @property
    def unmeasured(self) -> str | None:
        """Why the graph cannot be held against PyTorch on a CPU, None if it can."""
        if self.precision == "bf16":
            return "not measured here: ONNX Runtime has no bfloat16 convolutions on a CPU"
        if self.extent.usual and not self.extent.trials():
            tokens = self.extent.usual["frames"] * self.extent.frame_tokens
            return f"not measured here: {tokens} tokens a row, the one size, are too many for a CPU"
        return None


FIXED = Extent({}, {}, {}, ())


class WanDenoiserGraph(nn.Module):
    """``WanNetwork`` with the network's own attention."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, latents: Tensor, timesteps: Tensor, text: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Predict the velocity; see ``WanNetwork``."""
        return self.network(latents, timesteps, text, cos, sin)


class VideoCrafterDenoiserGraph(nn.Module):
    """``VideoCrafterUNet`` with neither cut nor an attention of a method's."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        """Predict eps; see ``VideoCrafterUNet``."""
        return self.network(latents, timesteps, text, fps)


class WanTextGraph(nn.Module):
    """UMT5 on one prompt: rows past its end do not count and are zero."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return ``[1, S, D]`` of tokens and mask ``[1, S]``."""
        out = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return out.float() * mask[..., None]


class _Stored(nn.Module):
    """A layer whose weights stay in the type they have and are float32 in use.

    Without an attribute ``weight``: UMT5 computes in that one's type.
    """

    def __init__(self, layer: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        self.kept = layer.weight
        self.offset = getattr(layer, "bias", None)
        self.looks_up = isinstance(layer, nn.Embedding)

    @property
    def weight(self) -> None:
        """Nothing that has a type."""
        return None

    def forward(self, given: Tensor) -> Tensor:
        """Return what the layer makes of it, in float32."""
        if self.looks_up:
            return F.embedding(given, self.kept).float()
        offset = None if self.offset is None else self.offset.float()
        return F.linear(given, self.kept.float(), offset)


def computing_in_float32(encoder: nn.Module) -> nn.Module:
    """Change a text encoder so that it computes in float32 from the weights it has; return it.

    UMT5's are bfloat16 as published, which ONNX Runtime multiplies nowhere on a CPU. Cast layer by layer they
    take half the disk and memory of float32 and mean the same. Norms and position biases are small.
    """
    kept = {n: m for n, m in encoder.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    replaced = {n: _Stored(m) for n, m in kept.items() if "relative_attention_bias" not in n}
    for name, layer in replaced.items():
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, layer)
    large = {id(weight) for layer in replaced.values() for weight in layer.parameters()}
    for weight in encoder.parameters():
        if id(weight) not in large:
            weight.data = weight.data.float()
    return encoder


class VideoCrafterTextGraph(nn.Module):
    """CLIP on one prompt, padded as the model wants it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[1, S, D]`` of tokens ``[1, S]``."""
        return self.encoder(input_ids=tokens).last_hidden_state.float()


class VideoCrafterDecoderGraph(nn.Module):
    """Latents to frames, each on its own."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        """Return frames ``[B, 3, height, width]`` in ``[0, 1]`` of latents ``[B, C, H, W]``."""
        frames = self.vae.decode(latents / self.scale, return_dict=False)[0]
        return frames.clamp(-1, 1).mul(0.5).add(0.5)


class WanDecoderGraph(nn.Module):
    """One latent to frames, what convolutions remember of the past going in and out as tensors.

    diffusers keeps the past in a list, with nothing at all, a word, or one frame in a slot at the start of a
    video. All of these are the same as two frames of which the earlier ones are zero.

    Args:
        vae: The autoencoder.
        states: Shape of the past by slot; slots that are never used are left out.
        slots: Length of the list.
        first: Whether this is the graph of a video's first latent, which has no past.
    """

    def __init__(
        self, vae: Any, states: dict[int, tuple[int, ...]], slots: int, first: bool
    ) -> None:
        from miga_bench.backbones.wan_vae import latent_statistics

        super().__init__()
        self.vae, self.states, self.slots, self.first = vae, states, slots, first
        self.mean, self.std = latent_statistics(vae)

    def forward(self, latent: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Decode the next latent.

        Args:
            latent: ``[1, C, 1, H, W]``.
            *past: None for the first latent, else what the call before returned.

        Returns:
            Frames ``[1, 3, N, height, width]`` in ``[0, 1]``, and the past of the next call.
        """
        memory: list[Any] = [None] * self.slots
        if not self.first:
            for slot, state in zip(self.states, past, strict=True):
                memory[slot] = state
        hidden = self.vae.post_quant_conv(latent * self.std + self.mean)
        out = self.vae.decoder(
            hidden, feat_cache=memory, feat_idx=[0], first_chunk=self.first
        ).clamp(-1, 1)
        return (
            out.mul(0.5).add(0.5),
            *(_two_frames(memory[slot], shape, latent) for slot, shape in self.states.items()),
        )


def _two_frames(kept: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if not isinstance(kept, Tensor):
        return like.new_zeros(shape)
    missing = shape[2] - kept.shape[2]
    if not missing:
        return kept
    return torch.cat([kept.new_zeros(*kept.shape[:2], missing, *kept.shape[3:]), kept], dim=2)
