"""FIFO-Diffusion (Kim et al., NeurIPS 2024, arXiv 2405.11473): diagonal denoising of a queue.

Every slot of the queue stands one level above the slot before it. A pass takes all slots down one level
(algorithm 1); the front slot, now clean, leaves, and pure noise enters at the back. Latent partitioning
cuts the queue into windows (section 4.2); with lookahead denoising (section 4.3) a window writes only its
noisier half and reads the cleaner half before it.

Where the text changes, a frame is denoised under its own text from the top level on: that is ours. The
released code switches all windows at once when the first frame of the new text is about to leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.sampling.base import CommonSettings, PassCallback, PromptSchedule, Sampler
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.noise import NoiseSource
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.rules import check_common, require
from miga_bench.sampling.windows import fifo_windows, windows_of_last_passes


@dataclass(frozen=True)
class FifoSettings(CommonSettings):
    """Settings of FIFO-Diffusion; ``steps`` is also the length of the queue, at least a window.

    Attributes:
        lookahead: Whether a window writes only its noisier half.
        released: Run all windows of every pass, with the prompt of the frame that leaves after it, as the
            released code does. By default, windows of the last passes on which no frame of the video depends
            are left out, and each window gets the prompt of the middle frame it writes.
        growth: Let the queue grow out of the opening clip, as MIGA's does, instead of putting clones of the
            clip's first frame before it: every latent that is made is handed out. Ours. A video that ends
            before half a window has left takes all windows of its passes.
    """

    lookahead: bool = True
    released: bool = field(default=False, kw_only=True)
    growth: bool = field(default=False, kw_only=True)


def check_fifo(s: CommonSettings, backbone: Backbone, length: int | None) -> None:
    """Check the settings of a queue that rises by one level per slot.

    Raises:
        UserError: A rule is broken; the message names it.
    """
    check_common(s, length)
    require(
        s.steps >= backbone.window,
        f"steps is {s.steps}: FIFO needs at least the {backbone.window} latents of a window on "
        f"{backbone.name}",
    )


def seed_queue(denoiser: WindowDenoiser, window: int, context: int, clones: bool = True) -> Queue:
    """Return FIFO's first queue: clones of the opening clip's first frame, then the clip, up the levels.

    Every frame is noised to one level above the frame before, the last to the top.

    Args:
        denoiser: Makes the opening clip.
        window: Latents of the opening clip.
        context: Clean slots before the front, read and never written.
        clones: Without them the queue is the opening clip on the topmost levels, and no more.
    """
    opening, steps = denoiser.denoise_clip(window), denoiser.schedule.steps
    frames = range(window - steps - context if clones else 0, window)
    levels = [max(0, steps - window + 1 + frame) for frame in frames]
    sources = torch.tensor([max(0, frame) for frame in frames])
    noise = denoiser.noise(list(frames), "seed")
    latents = denoiser.schedule.add_noise(opening[sources], levels, noise)
    return Queue.fresh(latents, levels, list(frames), denoiser.solver)


class Fifo(Sampler[FifoSettings]):
    """FIFO-Diffusion; endless."""

    name = "fifo"

    def stream(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int | None = None,
        callback: PassCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield finished latents; see ``Sampler.stream``.

        The first ``steps - window`` latents that leave the queue are a warm-up, grown from the opening clip's
        first frame, and are not handed out. None of its windows is wasted: what they write is context for the
        frames behind. With ``growth`` there is no warm-up.
        """
        s = self.settings
        opening = s.opening_reading(backbone) if s.released else None
        backbone = s.reading(backbone)
        check_fifo(s, backbone, length)
        require(
            not (s.growth and s.released),
            "growth=true with released=true: as released the queue begins with clones; leave one out",
        )
        window = backbone.window
        denoiser = WindowDenoiser.of(s, backbone, prompts, noise, callback, opening)
        cost = denoiser.cost
        context = window - window // 2 if s.lookahead else 0
        full = fifo_windows(context + s.steps, window, context)
        ending = [] if s.released else windows_of_last_passes(full, context)
        queue = seed_queue(denoiser, window, context, clones=not s.growth)
        while length is None or cost.finished < length:
            # The slots before the front are context: what left the queue last, still clean.
            front = queue.levels.count(0)
            frame, level = queue.frames[front], queue.levels[front]
            grown = len(queue) == context + s.steps
            plan = full if grown else fifo_windows(len(queue), window, context, front)
            if grown and length is not None:
                # The front leaves behind this pass, a later frame behind each of the ``left`` that follow.
                left = length - 1 - frame
                plan = plan[: ending[left]] if left < len(ending) else plan
            segment = prompts.segment(frame) if s.released else None
            denoiser.denoise(queue, plan, "fifo step", in_place=False, segment=segment)
            cost.report("queue", queue.levels)
            behind = self._noise_slot(denoiser, queue.frames[-1] + 1)
            if level > 1:  # a queue that still grows
                queue = queue + behind
                continue
            done = queue[front : front + 1]
            denoiser.forget(done.frames)
            queue = queue[int(front == context) :] + behind
            if frame >= 0:
                cost.finished += 1
                # a view of it would keep the whole pass's tensor alive
                yield done.latents[0].clone()

    def _noise_slot(self, denoiser: WindowDenoiser, frame: int) -> Queue:
        """Return one slot of pure noise at the top level."""
        latents = denoiser.noise([frame], "queue")
        return Queue.fresh(latents, [denoiser.schedule.steps], [frame], denoiser.solver)
