"""What the training stages are told of the tiny Wan."""

from pathlib import Path
from typing import Any

from miga_bench.backbones.tiny import models
from miga_bench.backbones.tiny.config import TrainConfig, quick
from miga_bench.backbones.tiny.data import (
    LatentClips,
    RenderedClips,
    compute_latents,
    load_latents,
)
from miga_bench.backbones.tiny.stages import Family
from miga_bench.backbones.tiny.tasks import DenoiserTask, VaeTask
from miga_bench.backbones.tiny.vae_clip import use_whole_clips


def _pictures(config: TrainConfig) -> RenderedClips:
    return RenderedClips(config.seed, config.vae.steps, config.vae.frames_per_step)


def _compute(vae: Any, config: TrainConfig, clips: int, folder: Path, part: int) -> None:
    compute_latents(use_whole_clips(vae), config.seed, clips, folder, part)


def _save(vae: Any, task: DenoiserTask, config: TrainConfig, latents: Path, folder: Path) -> None:
    _, _, mean, std = load_latents(latents)
    models.save_vae(vae, mean.flatten(), std.flatten(), folder)
    average: Any = task.average
    models.save_denoiser(
        average.transformer, average.text_encoder, task.tokenizer, config.denoiser.shift, folder
    )


WAN = Family(
    config=TrainConfig,
    quick=quick,
    make_vae=models.make_vae,
    vae_task=VaeTask,
    pictures=_pictures,
    compute=_compute,
    clips=LatentClips,
    denoiser_task=DenoiserTask,
    save=_save,
)
