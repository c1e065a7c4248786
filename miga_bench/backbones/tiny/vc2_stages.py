"""What the training stages are told of the tiny VideoCrafter2."""

from pathlib import Path
from typing import Any

from miga_bench.backbones.tiny import vc2_models
from miga_bench.backbones.tiny.config import VideoCrafterConfig, quick_videocrafter
from miga_bench.backbones.tiny.stages import Family
from miga_bench.backbones.tiny.vc2_data import (
    FrameLatents,
    Pictures,
    compute_latents,
    load_latents,
)
from miga_bench.backbones.tiny.vc2_tasks import NoiseTask, PictureVaeTask
from miga_bench.backbones.tiny.vc2_text import teach


def _pictures(config: VideoCrafterConfig) -> Pictures:
    return Pictures(config.seed, config.vae.steps, config.vae.batch)


def _compute(vae: Any, config: VideoCrafterConfig, clips: int, folder: Path, part: int) -> None:
    compute_latents(vae, config.seed, clips, config.denoiser.clip_frames, folder, part)


def _save(
    vae: Any, task: NoiseTask, config: VideoCrafterConfig, latents: Path, folder: Path
) -> None:
    _, _, scale = load_latents(latents)
    vae.register_to_config(scaling_factor=round(scale, 5))
    average: Any = task.average
    vc2_models.save(vae, average.unet, average.text_encoder, task.tokenizer, folder)


def _teach_text(task: NoiseTask, config: VideoCrafterConfig, out: Path) -> None:
    for net in (task.net, task.average):
        teach(net.text_encoder, task.tokenizer, config.denoiser, config.seed, out / "text.pt")


VIDEOCRAFTER2 = Family(
    config=VideoCrafterConfig,
    quick=quick_videocrafter,
    make_vae=vc2_models.make_vae,
    vae_task=PictureVaeTask,
    pictures=_pictures,
    compute=_compute,
    clips=FrameLatents,
    denoiser_task=NoiseTask,
    save=_save,
    before=_teach_text,
)
