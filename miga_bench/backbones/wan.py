"""The Wan2.1 family: text encoder, denoiser, autoencoder and schedule of one model.

``load_wan`` takes the published weights or any folder in their layout, so that the embedded tiny
model and the 1.3B one run through the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from miga_bench.backbones import memory
from miga_bench.backbones.base import LatentShape
from miga_bench.backbones.loaded import LoadedBackbone, text_side
from miga_bench.backbones.residence import Residence, join_defaults, pick_device, pick_dtype
from miga_bench.backbones.schedule import Schedule, flow_schedule
from miga_bench.backbones.solvers import Solver, UniPC
from miga_bench.backbones.wan_checkpoint import WanSource, find_source
from miga_bench.backbones.wan_denoiser import WanDenoiser, is_ours
from miga_bench.backbones.wan_hub import HubSource
from miga_bench.backbones.wan_text import NEGATIVE_PROMPT, WanText
from miga_bench.backbones.wan_vae import (
    WanStreamingDecoder,
    WanStreamingEncoder,
    spatial_factor,
    temporal_factor,
)
from miga_bench.errors import UserError


@dataclass(frozen=True)
class WanDefaults:
    """What a model's weights do not say; a folder's ``backbone.json`` may hold any of these.

    Attributes:
        height: Video height, pixels.
        width: Video width, pixels.
        window: Latents of the clips the model was trained on.
        frame_rate: Frames per second.
        flow_shift: Timestep shift of the noise schedule. 5.0 is how MIGA's release samples the authors'
            models: their repositories on the Hub, copies of them, and the original layout. Other models have
            their scheduler's; a folder whose scheduler says 3.0, as the authors' does, counts as such a copy.
        negative_prompt: What guidance steers away from.
    """

    height: int = 480
    width: int = 832
    window: int = 21
    frame_rate: float = 16.0
    flow_shift: float = 5.0
    negative_prompt: str = ""


class WanBackbone(LoadedBackbone):
    """A Wan2.1 text-to-video model.

    Attributes:
        flow_shift: Timestep shift of its schedules.
        vae: The shared autoencoder; sessions read it and change nothing.
        text: Tokenizer, encoder and cache of embeddings.
    """

    family = "wan"

    def __init__(
        self,
        name: str,
        source: WanSource,
        residence: Residence,
        dtype: torch.dtype,
        defaults: WanDefaults,
    ) -> None:
        """Load denoiser and autoencoder; the text encoder waits for a prompt it does not know.

        Args:
            name: What the user calls it.
            source: The model on disk.
            residence: Device, and whether networks leave it between uses.
            dtype: Of the denoiser; the autoencoder stays float32.
            defaults: Size, window, frame rate, shift, negative prompt.
        """
        self.name, self.defaults = name, defaults
        self.window, self.frame_rate = defaults.window, defaults.frame_rate
        self.flow_shift, self.negative_prompt = defaults.flow_shift, defaults.negative_prompt
        self.source, self._residence, self._dtype = source, residence, dtype
        transformer = source.transformer(dtype, residence.home)
        self.vae = source.vae(torch.float32, residence.home)
        self.frames_per_latent = temporal_factor(self.vae)
        self.text = make_text(source, residence, dtype)
        self.denoiser = WanDenoiser(transformer).eval()
        self.check_channels(self.denoiser.transformer.config, self.vae.config.z_dim)
        self.latent_shape = self._latent_shape(defaults.height, defaults.width)
        for part in (self.denoiser, self.vae):
            residence.add(part)
        if residence.offload:
            self.denoiser.register_forward_pre_hook(
                lambda module, _: residence.bring(module) and None
            )

    def _latent_shape(self, height: int, width: int) -> LatentShape:
        factor = spatial_factor(self.vae)
        _, patch_height, patch_width = self.denoiser.transformer.config.patch_size
        steps = (factor * patch_height, factor * patch_width)
        nearest = [max(1, round(v / s)) * s for v, s in zip((height, width), steps, strict=True)]
        if [height, width] != nearest:
            raise UserError(
                f"{self.name} cannot make {height}x{width} (height x width): the height must be a "
                f"multiple of {steps[0]} and the width of {steps[1]}; "
                f"the nearest size is {nearest[0]}x{nearest[1]}"
            )
        return LatentShape(self.vae.config.z_dim, height // factor, width // factor)

    @property
    def text_width(self) -> int:
        """Numbers per token that the transformer reads."""
        return int(self.denoiser.transformer.config.text_dim)

    def is_ours(self) -> bool:
        """Tell whether the denoiser is still ours, and not an engine."""
        return is_ours(self.denoiser)

    def decoder(self) -> WanStreamingDecoder:
        """Return a fresh streaming decoder for one video."""
        return WanStreamingDecoder(self.vae, *self._session())

    def picture_decoder(self) -> WanStreamingDecoder:
        """Return a decoder for one latent alone, whose past never leaves the device."""
        place, _ = self._session()
        return WanStreamingDecoder(self.vae, place)

    def encoder(self) -> WanStreamingEncoder:
        """Return a fresh streaming encoder for one video."""
        return WanStreamingEncoder(self.vae, *self._session())

    def _session(self) -> tuple[Any, torch.device | None]:
        residence = self._residence
        if not residence.offload:
            return None, None
        return lambda: residence.bring(self.vae), residence.home

    def schedule(self, steps: int) -> Schedule:
        """Return the flow-matching schedule with ``steps`` levels above clean."""
        return flow_schedule(steps, self.flow_shift)

    def solver(self, schedule: Schedule) -> Solver:
        """Return UniPC of order 2, one history per slot."""
        return UniPC(schedule)

    def clip_bytes(self, frames: int, copies: float = 0.0) -> int:
        """Return about how much memory one row of a denoiser call takes; see ``Backbone``."""
        transformer, shape = self.denoiser.transformer, self.latent_shape
        config, element = transformer.config, transformer.patch_embedding.weight.element_size()
        width = config.num_attention_heads * config.attention_head_dim
        _, patch_height, patch_width = config.patch_size
        tokens = frames * (shape.height * shape.width // (patch_height * patch_width))
        return max(
            memory.window_bytes(tokens, width, config.ffn_dim, element),
            memory.attention_bytes(tokens, width, element, copies),
        )


def make_text(source: WanSource, residence: Residence, dtype: torch.dtype) -> WanText:
    """Return a model's text side alone, for example to fill the cache on another machine.

    The embeddings of a big encoder are kept on disk, and it is dropped after use.

    Args:
        source: The model on disk or on the Hub.
        residence: Where the encoder runs, and what has to leave before.
        dtype: Of the denoiser. Encoders whose embeddings are cached run in bfloat16, as published;
            none runs in float16, in which UMT5 overflows.
    """
    cached = source.text_is_big()
    kind = torch.bfloat16 if cached or dtype == torch.float16 else dtype
    return text_side(WanText, source, residence, source.text_encoder, kind, cached)


def open_source(where: str | Path) -> WanSource:
    """Return the model in a folder, or in a repository on the Hub, in either layout.

    Raises:
        UserError: Neither is there.
    """
    root = Path(where).expanduser()
    if isinstance(where, Path) or root.exists():
        return find_source(root)
    return HubSource(where)


def load_wan(
    where: str | Path,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offload: bool = False,
    **changes: Any,
) -> WanBackbone:
    """Load a Wan2.1 model.

    Args:
        where: A folder in either layout, or the id of a repository on the Hub in one of them.
        name: What to call it; by default ``where``.
        device: Where to run, by default the GPU if there is one.
        dtype: Of the denoiser, a name in ``residence.DTYPES`` or a torch type; by default bfloat16
            on a GPU, float32 on a CPU. Time embedding, modulation tables and norms stay float32.
        offload: Keep the networks in main memory and bring one at a time to the device.
        **changes: Fields of ``WanDefaults`` to use instead of the model's own; None is ignored.

    Raises:
        UserError: Nothing usable is there, or an argument is wrong.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    source = open_source(where)
    with torch.inference_mode(mode=False):
        return WanBackbone(
            name or str(where),
            source,
            Residence(place, offload and place.type != "cpu"),
            kind,
            _defaults(source, changes),
        )


def _defaults(source: WanSource, changes: dict[str, Any]) -> WanDefaults:
    """Join built-in defaults, what the folder says, and what the caller wants, in this order."""
    found: dict[str, Any] = {}
    shift = source.flow_shift()
    if source.published():
        found["negative_prompt"] = NEGATIVE_PROMPT
    if shift is not None:
        found["flow_shift"] = shift
    return join_defaults(WanDefaults, found, source.root, changes)
