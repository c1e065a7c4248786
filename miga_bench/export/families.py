"""The graphs of each model family, and the facts that sampling needs beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from miga_bench.backbones.row_flops import row_flops
from miga_bench.export.graphs import (
    FIXED,
    Extent,
    Graph,
    Sizes,
    VideoCrafterDecoderGraph,
    VideoCrafterDenoiserGraph,
    VideoCrafterTextGraph,
    WanDecoderGraph,
    WanDenoiserGraph,
    WanTextGraph,
    computing_in_float32,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CPU = torch.device("cpu")
MOST_DECODED = 16

Change = Callable[[nn.Module], None]


def frame_tokens(backbone: Any) -> int:
    """Return how many tokens of a latent frame the denoiser attends over at its finest."""
    _, height, width = backbone.latent_shape
    if backbone.family != "wan":
        return int(height * width)
    patch = backbone.denoiser.rotary.patch
    return int(height * width // (patch[0] * patch[1]))


def denoiser_graph(backbone: Any, precision: str, extent: Extent, change: Change) -> Graph:
    """Return the denoiser's graph.

    Args:
        backbone: Loaded, its denoiser in the graph's precision.
        precision: Of its weights.
        extent: How sizes vary.
        change: What is done to every network that is loaded anew, for example a LoRA merged.
    """
    channels, height, width = backbone.latent_shape
    rows, reads = backbone.text.length, backbone.text_width
    network = backbone.denoiser.network
    shapes: dict[str, list[int | str]] = {
        "latents": ["batch", channels, "frames", height, width],
        "timesteps": ["batch", "frames"],
        "text": ["batch", rows, reads],
    }

    def common(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        batch, frames = sizes["batch"], sizes["frames"]
        return (
            torch.randn(batch, channels, frames, height, width, generator=generator),
            torch.rand(batch, frames, generator=generator) * 1000,
            torch.randn(batch, rows, reads, generator=generator),
        )

    if backbone.family == "wan":
        rotary = backbone.denoiser.rotary
        tokens = frame_tokens(backbone)
        half = (rotary.height_dim + rotary.width_dim + rotary.frame_dim) // 2
        shapes["cos"] = shapes["sin"] = [1, f"{tokens}*frames", 1, half]

        def sample(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
            given = common(sizes, generator)
            return (*given, *rotary(given[0]))

        def load() -> nn.Module:
            from miga_bench.backbones.wan_denoiser import WanNetwork

            return WanNetwork(backbone.source.transformer(torch.float32, CPU))

        wrap: Any = WanDenoiserGraph
    else:
        lowest, highest = backbone.defaults.fps_range
        shapes["fps"] = ["batch"]

        def sample(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
            rates = torch.rand(sizes["batch"], generator=generator) * (highest - lowest) + lowest
            return (*common(sizes, generator), rates)

        def load() -> nn.Module:
            network: nn.Module = backbone.source.unet(torch.float32, CPU)
            return network

        wrap = VideoCrafterDenoiserGraph

    def reference() -> nn.Module:
        if precision == "fp32":
            return wrap(network)
        loaded = load()
        change(loaded)
        return wrap(loaded)

    return Graph(
        "denoiser",
        wrap(network),
        reference,
        shapes,
        ["prediction"],
        sample,
        extent,
        precision,
    )


def text_graph(backbone: Any) -> Graph:
    """Return the text encoder's graph: one prompt, padded to the model's text length."""
    # whatever the denoiser's type: UMT5 overflows in float16, and no CPU of ONNX Runtime's does bfloat16
    masked = backbone.family == "wan"
    stored = "bf16" if masked and backbone.source.text_is_big() else None
    encoder: Any = backbone.source.text_encoder(DTYPES[stored or "fp32"], CPU)
    if stored:
        encoder = computing_in_float32(encoder)
    length, vocabulary = backbone.text.length, encoder.config.vocab_size
    module = WanTextGraph(encoder) if masked else VideoCrafterTextGraph(encoder)
    shapes: dict[str, list[int | str]] = {"tokens": [1, length]}
    if masked:
        shapes["mask"] = [1, length]

    def sample(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        tokens = torch.randint(vocabulary, (1, length), generator=generator)
        if not masked:
            return (tokens,)
        words = int(torch.randint(1, length + 1, (), generator=generator))
        mask = (torch.arange(length) < words).long()[None]
        return tokens * mask, mask

    return Graph(
        "text_encoder", module, lambda: module, shapes, ["text"], sample, FIXED, "fp32", stored
    )


def decoder_graphs(backbone: Any) -> list[Graph]:
    """Return the graphs that turn latents into frames."""
    return _wan_decoders(backbone) if backbone.family == "wan" else _image_decoder(backbone)


def _image_decoder(backbone: Any) -> list[Graph]:
    channels, height, width = backbone.latent_shape
    module = VideoCrafterDecoderGraph(backbone.vae)

    def sample(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(sizes["batch"], channels, height, width, generator=generator),)

    sizes = [{"batch": count, "frames": 2} for count in (1, 4, MOST_DECODED)]
    extent = Extent(sizes[0], sizes[1], sizes[2], ("batch",))
    shapes: dict[str, list[int | str]] = {"latents": ["batch", channels, height, width]}
    return [
        Graph("vae_decoder", module, lambda: module, shapes, ["frames"], sample, extent, "fp32")
    ]


def _wan_decoders(backbone: Any) -> list[Graph]:
    from miga_bench.backbones.wan_vae import WanStreamingDecoder

    channels, height, width = backbone.latent_shape
    session = WanStreamingDecoder(backbone.vae)
    for _ in range(2):  # two latents in, every slot holds what it will always hold
        session.push(torch.zeros(1, channels, height, width))
    past = session.past
    states = {slot: tuple(kept.shape) for slot, kept in enumerate(past) if isinstance(kept, Tensor)}
    first, step = (
        WanDecoderGraph(backbone.vae, states, len(past), first=kind) for kind in (True, False)
    )
    latent: dict[str, list[int | str]] = {"latent": [1, channels, 1, height, width]}
    names = [f"{number:02d}" for number in range(len(states))]
    before = {
        f"past_{name}": list(shape) for name, shape in zip(names, states.values(), strict=True)
    }
    after = ["frames", *(f"next_{name}" for name in names)]

    def one(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(1, channels, 1, height, width, generator=generator),)

    def later(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        with torch.no_grad():
            _, *kept = first(*one(sizes, generator))
            for _ in range(2):
                _, *kept = step(*one(sizes, generator), *kept)
        return (*one(sizes, generator), *kept)

    return [
        Graph("vae_decoder_first", first, lambda: first, latent, after, one, FIXED, "fp32"),
        Graph(
            "vae_decoder_step",
            step,
            lambda: step,
            {**latent, **before},  # type: ignore[dict-item]
            after,
            later,
            FIXED,
            "fp32",
        ),
    ]


def facts(backbone: Any) -> dict[str, Any]:
    """Return what sampling needs to know of a backbone beside its graphs."""
    text = backbone.text
    known: dict[str, Any] = {
        "name": backbone.name,
        "family": backbone.family,
        "weights_hash": backbone.weights_hash,
        "window": backbone.window,
        "latent_shape": list(backbone.latent_shape),
        "frame_rate": backbone.frame_rate,
        "negative_prompt": backbone.negative_prompt,
        "text": {"length": text.length, "unknown": text.unknown},
        "row_flops": flops_polynomial(backbone),
        "row_bytes": backbone.clip_bytes(backbone.window),
        "frames_per_latent": backbone.frames_per_latent,
    }
    if backbone.family == "wan":
        rotary = backbone.denoiser.rotary
        dims = rotary.height_dim + rotary.width_dim + rotary.frame_dim
        known["rotary"] = {"head_dim": dims, "patch": list(rotary.patch)}
        known["flow_shift"] = backbone.flow_shift
    else:
        defaults = backbone.defaults
        names = ("fps", "fps_range", "grid", "rescale", "eta")
        known["defaults"] = {name: getattr(defaults, name) for name in names}
    return known


def flops_polynomial(backbone: Any) -> list[int]:
    """Return ``a, b, c`` of the operations ``a + b F + c F^2`` of one row of F latents.

    Convolutions and projections grow with the frames, attention over frames with their square.
    """
    channels, height, width = backbone.latent_shape

    def count(frames: int) -> int:
        inputs = (
            torch.empty(1, channels, frames, height, width, device="meta"),
            torch.empty(1, frames, device="meta"),
            torch.empty(1, backbone.text.length, backbone.text_width, device="meta"),
        )
        return row_flops(backbone.denoiser, inputs, {})

    one, two, three = (count(frames) for frames in (2, 4, 6))
    square = (three - 2 * two + one) // 8
    linear = (two - one) // 2 - 6 * square
    constant = one - 2 * linear - 4 * square
    return [constant, linear, square]
