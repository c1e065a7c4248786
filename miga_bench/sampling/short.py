"""The plain short clip: what the model was trained for, and the measure of every longer video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError
from miga_bench.sampling.base import CommonSettings, PassCallback, PromptSchedule, Sampler
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.rules import check_common, refuse_changes


@dataclass(frozen=True)
class ShortSettings(CommonSettings):
    """Settings of the short clip: only those that every method has."""


class Short(Sampler[ShortSettings]):
    """One window of latents on shared levels; not endless."""

    name = "short"
    endless = False
    one_clip = True

    def stream(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int | None = None,
        callback: PassCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield up to ``backbone.window`` latents; see ``Sampler.stream``."""
        s = self.settings
        backbone = s.reading(backbone)
        check_common(s, length)
        if length is None or length > backbone.window:
            raise UserError(
                f"short makes at most {backbone.window} latents ({backbone.frames_of(backbone.window)}"
                f" frames) on {backbone.name}: ask for fewer frames, or use fifo, scaling-noise or miga"
            )
        refuse_changes(prompts, self.name, length)
        denoiser = WindowDenoiser.of(s, backbone, prompts, noise, callback)
        yield from denoiser.denoise_clip(backbone.window)[:length]
