"""MIGA as one would first write it: the yardstick of the speed measurement, and a second opinion.

One window at a time, two denoiser calls for guidance, one timestep per token through diffusers' own
forward, diffusers' own solver called once per frame with a state of its own, every video collected
before stage 2. Same windows, same noise, and so, to rounding, the same latents as ``Miga`` with
reflection off and guidance frames from the queue.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.backbones.schedule import Schedule
from miga_bench.sampling import MigaSettings, NoiseSource, PromptSchedule
from miga_bench.sampling.miga import GROWTH_ENDS
from miga_bench.sampling.windows import Window, growth_partition, miga_windows, partition


@dataclass
class Slot:
    """One latent frame ``[C, H, W]`` with its level, frame number and solver."""

    latent: Tensor
    level: int
    frame: int
    solver: Any


@dataclass
class PlainLoop:
    """The plain loop over one backbone.

    Attributes:
        settings: MIGA's; reflection off, ``released`` off, guidance from ``chunks`` or ``head``.
        backbone: Gives geometry and schedule.
        transformer: diffusers' ``WanTransformer3DModel`` with the same weights.
        prompts: A single prompt.
        noise: The same noise as the other sampler's.
    """

    settings: MigaSettings
    backbone: Backbone
    transformer: Any
    prompts: PromptSchedule
    noise: NoiseSource

    def __post_init__(self) -> None:
        self.schedule: Schedule = self.backbone.schedule(self.settings.steps)
        self.template = _scheduler(self.schedule)
        patch = self.transformer.config.patch_size
        shape = self.backbone.latent_shape
        self.tokens = (shape.height // patch[1]) * (shape.width // patch[2])

    @torch.inference_mode()
    def sample(self, length: int) -> Tensor:
        """Return ``[length, C, H, W]``."""
        s, window = self.settings, self.backbone.window
        opening = self._slots(range(window), s.steps, "base")
        while opening[0].level > self.schedule.clean:
            self._pass(opening, [Window(tuple(range(window)), range(window), 0)])
        opening = opening[: window // s.zigzag * s.zigzag]
        least = window if s.stage2_steps or s.renoise else 0
        video = self._stage_1(opening, math.ceil(max(length, least) / s.zigzag))
        exit_level = self.schedule.clean + s.stage2_steps
        video = self._unified(video, exit_level, s.stage2_steps)
        if s.renoise:
            level = self.schedule.clean + s.renoise
            video = [self._renoised(slot, level, "renoise") for slot in video]
            video = self._unified(video, level, s.renoise)
        return torch.stack([slot.latent for slot in video[:length]])

    def _stage_1(self, opening: list[Slot], chunks: int) -> list[Slot]:
        s, window = self.settings, self.backbone.window
        top, exit_level = s.steps - window // s.zigzag, self.schedule.clean + s.stage2_steps
        queue = [self._renoised(slot, top + slot.frame // s.zigzag, "seed") for slot in opening]
        done: list[Slot] = []
        local, grown, index = window - s.guidance_frames, 0, 0
        while grown < chunks:
            queue += self._chunk(queue)
            grown += 1
            if queue[0].level <= exit_level + GROWTH_ENDS:
                break
            self._zigzag_pass(queue, growth_partition(len(queue), s.stride, local))
        while len(done) < chunks * s.zigzag:
            self._zigzag_pass(queue, partition(len(queue), s.stride, local, index % s.stride))
            index += 1
            if queue[0].level == exit_level:
                done += queue[: s.zigzag]
                del queue[: s.zigzag]
            if grown < chunks:
                queue += self._chunk(queue)
                grown += 1
        return done

    def _zigzag_pass(self, queue: list[Slot], ranges: list[range]) -> None:
        s, window = self.settings, self.backbone.window
        args = (window, s.guidance_frames, s.zigzag, s.guidance_reach)
        self._pass(queue, miga_windows(ranges, len(queue), *args))

    def _unified(self, video: list[Slot], first: int, steps: int) -> list[Slot]:
        s, window = self.settings, self.backbone.window
        for slot in video:
            slot.level, slot.solver = first, self._solver(first)
        for number in range(steps):
            ranges = partition(len(video), s.stride, window, number % s.stride)
            self._pass(video, miga_windows(ranges, len(video), window, 0, 1, "chunks"))
        return video

    def _pass(self, queue: list[Slot], plan: Sequence[Window]) -> None:
        """Take every slot down one level, reading the queue as it was before the pass."""
        before = [(slot.latent, slot.level) for slot in queue]
        for window in plan:
            prediction = self._predict([before[k] for k in window.reads])
            for place, number in enumerate(window.writes, window.offset):
                slot = queue[number]
                time = self.template.timesteps[self.settings.steps - slot.level]
                slot.latent = slot.solver.step(
                    prediction[:, place], time, slot.latent, return_dict=False
                )[0]
                slot.level -= 1

    def _solver(self, level: int) -> Any:
        """Return a solver without a history that begins at ``level``."""
        solver = copy.copy(self.template)
        solver.model_outputs, solver.timestep_list = [None, None], [None, None]
        solver.set_begin_index(self.settings.steps - level)
        return solver

    def _predict(self, seen: list[tuple[Tensor, int]]) -> Tensor:
        """Return the guided prediction for one window, ``[C, F, H, W]``."""
        latents = torch.stack([latent for latent, _ in seen], dim=1)[None]
        levels = torch.tensor([level for _, level in seen])
        timesteps = self.schedule.timesteps[levels].repeat_interleave(self.tokens)[None]
        conditional, unconditional = (
            self.transformer(latents, timesteps.to(latents.device), text, return_dict=False)[0][0]
            for text in (self.prompts.text, self.prompts.negative)
        )
        guided: Tensor = unconditional + self.settings.guidance_scale * (
            conditional - unconditional
        )
        return guided

    def _slots(self, frames: range, level: int, purpose: str) -> list[Slot]:
        latents = self.noise(list(frames), purpose)
        return [
            Slot(latent, level, frame, self._solver(level))
            for latent, frame in zip(latents, frames, strict=True)
        ]

    def _chunk(self, queue: list[Slot]) -> list[Slot]:
        first = queue[-1].frame + 1
        return self._slots(range(first, first + self.settings.zigzag), self.settings.steps, "queue")

    def _renoised(self, slot: Slot, level: int, purpose: str) -> Slot:
        noise = self.noise([slot.frame], purpose)
        latent = self.schedule.add_noise(slot.latent[None], [level], noise)
        return Slot(latent[0], level, slot.frame, self._solver(level))


def _scheduler(schedule: Schedule) -> Any:
    """Return diffusers' UniPC on our grid."""
    scheduler: Any = UniPCMultistepScheduler
    scheduler = scheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(schedule.steps)
    scheduler.sigmas = schedule.sigma.flip(0).float()
    scheduler.timesteps = schedule.timesteps.flip(0)[: schedule.steps].long()
    return scheduler
