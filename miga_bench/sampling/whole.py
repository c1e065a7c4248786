"""What FreeLong and FreePCA share: the whole video as one clip, with an attention of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator

from torch import Tensor

from miga_bench.backbones.base import HEADROOM, Backbone, FrameAttention
from miga_bench.errors import UserError
from miga_bench.sampling.base import PassCallback, PromptSchedule, Sampler, SettingsT
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.rules import check_common, refuse_cache, refuse_changes


class WholeVideo(Sampler[SettingsT]):
    """A method that takes all latents down the levels together; not endless.

    A video of at most a window is the plain short clip, bit for bit: there is nothing to extend.
    """

    endless = False
    at_once = True

    @abstractmethod
    def check(self, backbone: Backbone) -> None:
        """Raise ``UserError`` if a setting breaks a rule of the method on this backbone."""

    @abstractmethod
    def start(self, noise: NoiseSource, window: int, frames: int) -> Tensor:
        """Return the noise ``[frames, C, H, W]`` that denoising starts from."""

    @abstractmethod
    def attention(self, window: int, frames: int, timestep: float) -> FrameAttention:
        """Return the attention over frames of a step at a timestep in ``[0, 1000]``."""

    @abstractmethod
    def copies(self, window: int) -> float:
        """Return how many float32 tensors of its output's shape ``attention`` holds at its peak."""

    def stream(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int | None = None,
        callback: PassCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield ``length`` latents, the first after the last step; see ``Sampler.stream``."""
        s = self.settings
        backbone = s.reading(backbone)
        check_common(s, length)
        if length is None:
            raise UserError(
                f"{self.name} denoises the whole video at once, so it cannot go on for ever: "
                "say how long the video is to be, or use fifo, scaling-noise or miga"
            )
        refuse_changes(prompts, self.name, length)
        refuse_cache(s, self.name, "makes the whole video as one clip")
        self.check(backbone)
        window = backbone.window
        denoiser = WindowDenoiser.of(s, backbone, prompts, noise, callback)
        if length <= window:
            yield from denoiser.denoise_clip(window)[:length]
            return
        rows = 1 if s.guidance_scale == 1 else 2
        fit = rows_that_fit(self.name, backbone, length, self.copies(window), backbone.free_bytes())
        if fit is not None and fit < math.ceil(rows / denoiser.processes):
            channels, height, width = backbone.latent_shape
            denoiser.fitting.expect((channels, length, height, width), fit)
        # All steps are made before the first latent is handed out, so a caller that stops to
        # look at it never finds the backbone changed.
        yield from denoiser.denoise_clip(
            length,
            self.start(noise, window, length),
            lambda timestep: backbone.attending(self.attention(window, length, timestep)),
        )


def rows_that_fit(
    method: str, backbone: Backbone, length: int, copies: float, available: int | None
) -> int | None:
    """Return how many rows of a clip fit one denoiser call, None if that is not known.

    Args:
        method: For the message.
        backbone: Knows what a clip takes.
        length: Latents of the clip.
        copies: See ``WholeVideo.copies``.
        available: Free bytes; None if not known, which refuses nothing.

    Raises:
        UserError: Not even one fits; the message says what it takes and how long a clip may be.
    """

    def need(frames: int) -> float:
        return (backbone.clip_bytes(frames, copies) or 0) / HEADROOM

    if available is None or not need(length):
        return None
    if need(length) <= available:
        return int(available / need(length))
    most = bisect_right(range(1, length), float(available), key=need)
    raise UserError(
        f"{method} denoises all {length} latents at once on {backbone.name}, which takes at least "
        f"{need(length) / 2**30:.1f} GiB; with {available / 2**30:.1f} GiB free at most {most} fit "
        f"({backbone.frames_of(most)} frames): ask for fewer frames, or use fifo, scaling-noise or miga"
    )
