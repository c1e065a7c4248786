"""The VideoCrafter2 family: text encoder, denoiser, autoencoder and schedule of one model.

``load_videocrafter2`` takes the published checkpoint or any folder in diffusers' layout, so that the
embedded tiny model and the 1.4B one run through the same code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from miga_bench.backbones import memory
from miga_bench.backbones.base import LatentShape
from miga_bench.backbones.loaded import LoadedBackbone, text_side
from miga_bench.backbones.residence import Residence, join_defaults, pick_device, pick_dtype
from miga_bench.backbones.schedule import Grid, Schedule
from miga_bench.backbones.solvers import DDIM, Solver
from miga_bench.backbones.vc2_checkpoint import VideoCrafterSource, open_source
from miga_bench.backbones.vc2_denoiser import VideoCrafterDenoiser, VideoCrafterUNet
from miga_bench.backbones.vc2_rules import check_answers, schedule_of
from miga_bench.backbones.vc2_text import VideoCrafterText
from miga_bench.backbones.vc2_vae import (
    VideoCrafterStreamingDecoder,
    VideoCrafterStreamingEncoder,
    spatial_factor,
)
from miga_bench.errors import UserError


@dataclass(frozen=True)
class VideoCrafterDefaults:
    """What a model's weights do not say; a folder's ``backbone.json`` may hold any of these.

    Attributes:
        height: Video height, pixels.
        width: Video width, pixels.
        window: Latents, which are frames, of the clips the model was trained on.
        frame_rate: Frames per second of the video that is written.
        fps: Frame rate that the network is told; the higher, the less moves between frames.
        fps_range: Lowest and highest rate the network knows; 4 to 32 is what the authors offer.
        grid: Training steps that the levels stand at, see ``ddpm_schedule``.
        rescale: Whether the schedule shrinks clean latents as in training. The loops of FIFO and MIGA
            as released leave it out.
        eta: Share of fresh noise in a DDIM step.
        negative_prompt: What guidance steers away from.
    """

    height: int = 320
    width: int = 512
    window: int = 16
    frame_rate: float = 10.0
    fps: float = 8.0
    fps_range: Sequence[float] = (4.0, 32.0)
    grid: Grid = "even"
    rescale: bool = True
    eta: float = 1.0
    negative_prompt: str = ""


class VideoCrafter2Backbone(LoadedBackbone):
    """A VideoCrafter2 text-to-video model.

    Attributes:
        defaults: All it was loaded with, ``reading``'s answers included.
        vae: The shared autoencoder; sessions read it and change nothing.
        text: Tokenizer, encoder and cache of embeddings.
    """

    family = "videocrafter2"

    def __init__(
        self,
        name: str,
        source: VideoCrafterSource,
        residence: Residence,
        dtype: torch.dtype,
        defaults: VideoCrafterDefaults,
    ) -> None:
        """Load denoiser and autoencoder; the text encoder waits for a prompt it does not know.

        Args:
            name: What the user calls it.
            source: The model on disk.
            residence: Device, and whether networks leave it between uses.
            dtype: Of the denoiser; autoencoder and text encoder stay float32.
            defaults: Size, window, rates, schedule, negative prompt.
        """
        self.name = name
        self.window, self.frame_rate = defaults.window, defaults.frame_rate
        self.negative_prompt = defaults.negative_prompt
        self.source, self._residence, self._dtype = source, residence, dtype
        check_answers(name, defaults.grid, defaults.fps, defaults.fps_range)
        network: Any = source.unet(dtype, residence.home)
        self.vae = source.vae(torch.float32, residence.home)
        self.text = make_text(source, residence)
        self.check_channels(network.config, self.vae.config.latent_channels)
        self.latent_shape = self._latent_shape(network.config, defaults.height, defaults.width)
        for part in (network, self.vae):
            residence.add(part)
        self._settle(network, defaults)

    def _settle(self, network: VideoCrafterUNet, defaults: VideoCrafterDefaults) -> None:
        """Put the network behind a denoiser of these defaults."""
        residence = self._residence
        self.defaults = defaults
        self.denoiser = VideoCrafterDenoiser(network, float(defaults.fps)).eval()
        if residence.offload:
            self.denoiser.register_forward_pre_hook(
                lambda module, _: residence.bring(module.network) and None
            )

    def _latent_shape(self, config: Any, height: int, width: int) -> LatentShape:
        factor = spatial_factor(self.vae)
        step = factor * 2 ** (len(config.block_out_channels) - 1)
        nearest = [max(1, round(value / step)) * step for value in (height, width)]
        if [height, width] != nearest:
            raise UserError(
                f"{self.name} cannot make {height}x{width} (height x width): both must be multiples "
                f"of {step}; the nearest size is {nearest[0]}x{nearest[1]}"
            )
        return LatentShape(self.vae.config.latent_channels, height // factor, width // factor)

    def reading(
        self,
        grid: Grid | None = None,
        rescale: bool | None = None,
        fps: float | None = None,
    ) -> VideoCrafter2Backbone:
        """Return this backbone, networks shared, with other answers; see ``Backbone.reading``."""
        answers = {"grid": grid, "rescale": rescale, "fps": fps}
        given = {key: value for key, value in answers.items() if value is not None}
        defaults = VideoCrafterDefaults(**{**vars(self.defaults), **given})
        if defaults == self.defaults:
            return self
        check_answers(self.name, defaults.grid, defaults.fps, defaults.fps_range)
        other = copy.copy(self)
        other._settle(self.denoiser.network, defaults)
        return other

    @property
    def text_width(self) -> int:
        """Numbers per token that the network reads."""
        return int(self.denoiser.network.config.cross_attention_dim)

    def decoder(self) -> VideoCrafterStreamingDecoder:
        """Return a fresh streaming decoder for one video."""
        return VideoCrafterStreamingDecoder(self.vae, self._place())

    def encoder(self) -> VideoCrafterStreamingEncoder:
        """Return a fresh streaming encoder for one video."""
        return VideoCrafterStreamingEncoder(self.vae, self._place())

    def _place(self) -> Callable[[], torch.device] | None:
        residence = self._residence
        return (lambda: residence.bring(self.vae)) if residence.offload else None

    def schedule(self, steps: int) -> Schedule:
        """Return the variance-preserving schedule with ``steps`` levels above clean.

        Raises:
            UserError: The training steps are not enough, or too many.
        """
        return schedule_of(self.name, steps, self.defaults.grid, self.defaults.rescale)

    def solver(self, schedule: Schedule) -> Solver:
        """Return DDIM with this model's share of fresh noise."""
        return DDIM(schedule, self.defaults.eta)

    @property
    def can_cut(self) -> bool:
        """Whether the denoiser takes ``cut=N``: ours does, an engine does not."""
        return self.is_ours()

    def is_ours(self) -> bool:
        """Tell whether the denoiser is still ours, and not an engine."""
        denoiser = self.denoiser
        return isinstance(denoiser, VideoCrafterDenoiser) and isinstance(
            denoiser.network, VideoCrafterUNet
        )

    def clip_bytes(self, frames: int, copies: float = 0.0) -> int:
        """Return about how much memory one row of a denoiser call takes; see ``Backbone``.

        The finest level holds the most, in the first temporal transformer or on the way up. The first one
        is wider inside than its level, and holds the images before and after their norm (and less than as
        much in small things), and tokens before and after theirs with the gated feed-forward layer: 8 widths
        before the gate, 4 of what it lets through and 4 after it. On the way up, beside the skips of all
        levels (about 6 finest ones), the most is a residual block, whose input is as wide as that of the
        level below and a skip together, or again the feed-forward layer.
        """
        config = self.denoiser.network.config
        element = 4 if self._dtype == torch.float32 else 2
        width, below = (*config.block_out_channels, 0)[:2]
        inner = config.temporal_heads * config.attention_head_dim
        tokens = frames * self.latent_shape.height * self.latent_shape.width
        gated = tokens * (2 + 8 + 4 + 4) * inner * element
        first = max(gated, memory.attention_bytes(tokens, inner, element, copies))
        residual = tokens * (width + below) * (2 * element + 4)
        forward = memory.window_bytes(tokens, width, 6 * width, element)
        attention = memory.attention_bytes(tokens, width, element, copies)
        skips = tokens * 6 * width * element
        return max(tokens * 3 * width * element + first, skips + max(residual, forward, attention))


def make_text(source: VideoCrafterSource, residence: Residence) -> VideoCrafterText:
    """Return a model's text side alone.

    The embeddings of a big encoder are kept on disk, and it is dropped after use.

    Args:
        source: The model on disk.
        residence: Where the encoder runs, and what has to leave before.
    """
    encoder, cached = source.text_encoder, source.text_is_big()
    return text_side(VideoCrafterText, source, residence, encoder, torch.float32, cached)


def load_videocrafter2(
    where: str | Path,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offload: bool = False,
    **changes: Any,
) -> VideoCrafter2Backbone:
    """Load a VideoCrafter2 model.

    Args:
        where: A diffusers folder, the published ``model.ckpt`` or its folder, or the id of a
            repository on the Hub that holds either.
        name: What to call it; by default ``where``.
        device: Where to run, by default the GPU if there is one.
        dtype: Of the denoiser, a name in ``residence.DTYPES`` or a torch type; by default float16
            on a GPU, float32 on a CPU. The embeddings of time and frame rate stay float32.
        offload: Keep the networks in main memory and bring one at a time to the device.
        **changes: Fields of ``VideoCrafterDefaults`` to use instead of the model's own; None is
            ignored.

    Raises:
        UserError: Nothing usable is there, or an argument is wrong.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place, "videocrafter2")
    source = open_source(where)
    with torch.inference_mode(mode=False):
        return VideoCrafter2Backbone(
            name or str(where),
            source,
            Residence(place, offload and place.type != "cpu"),
            kind,
            join_defaults(VideoCrafterDefaults, {}, source.side, changes),
        )
