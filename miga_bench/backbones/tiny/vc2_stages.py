"""Training stages of the tiny VideoCrafter2: autoencoder, latents, U-Net with its text encoder."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from miga_bench.backbones.tiny import vc2_models
from miga_bench.backbones.tiny.config import VideoCrafterConfig
from miga_bench.backbones.tiny.fit import fit, in_processes
from miga_bench.backbones.tiny.vc2_data import (
    FrameLatents,
    Pictures,
    compute_latents,
    load_latents,
)
from miga_bench.backbones.tiny.vc2_tasks import NoiseTask, PictureVaeTask


def train_vae(config: VideoCrafterConfig, out: Path) -> None:
    """Stage one; writes ``vae.pt``, the averaged weights."""
    if (out / "vae.pt").exists():
        return
    L.seed_everything(config.seed, verbose=False)
    settings = config.vae
    task = PictureVaeTask(config)
    pictures = Pictures(config.seed, settings.steps, settings.batch)
    fit(config, task, pictures, out, "vae")
    torch.save(task.average.state_dict(), out / "vae.pt")


def make_latents(config: VideoCrafterConfig, out: Path) -> None:
    """Latents of the training clips, in as many processes as training uses."""
    if len(list((out / "latents").glob("captions-*.json"))) < config.processes:
        in_processes(config.processes, _make_share, config, out)


def train_denoiser(config: VideoCrafterConfig, out: Path) -> None:
    """Stage two; writes the whole folder.

    Args:
        config: What to train.
        out: Training folder with ``vae.pt`` and ``latents``.
    """
    L.seed_everything(config.seed + 1, verbose=False)
    settings = config.denoiser
    clips = FrameLatents(
        out / "latents", config.seed, settings.steps, settings.batch, settings.dropout
    )
    task = NoiseTask(config)
    fit(config, task, clips, out, "denoiser")
    torch.save(task.average.state_dict(), out / "denoiser.pt")
    export(config, out, out / "denoiser.pt", out / "weights")


def export(config: VideoCrafterConfig, out: Path, denoiser: Path, folder: Path) -> None:
    """Write the folder from trained parts.

    Args:
        config: What they were trained with.
        out: Training folder with ``vae.pt`` and ``latents``.
        denoiser: Averaged weights of stage two; a snapshot will do.
        folder: Where to write.
    """
    vae = _load_vae(config, out)
    _, _, scale = load_latents(out / "latents")
    vae.register_to_config(scaling_factor=round(scale, 5))
    task = NoiseTask(config)
    task.average.load_state_dict(torch.load(denoiser, weights_only=True))
    average: Any = task.average
    vc2_models.save(vae, average.unet, average.text_encoder, task.tokenizer, folder)


def _load_vae(config: VideoCrafterConfig, out: Path) -> Any:
    vae = vc2_models.make_vae(config.vae)
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    return vae.eval()


def _make_share(part: int, config: VideoCrafterConfig, out: Path) -> None:
    settings = config.denoiser
    clips = settings.clips // config.processes
    vae = _load_vae(config, out)
    compute_latents(vae, config.seed, clips, settings.clip_frames, out / "latents", part)
