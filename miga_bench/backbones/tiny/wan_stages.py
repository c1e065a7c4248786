"""Training stages of the tiny Wan: autoencoder, latents, denoiser with its text encoder."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from miga_bench.backbones.tiny import models
from miga_bench.backbones.tiny.config import TrainConfig
from miga_bench.backbones.tiny.data import (
    LatentClips,
    RenderedClips,
    compute_latents,
    load_latents,
)
from miga_bench.backbones.tiny.fit import fit, in_processes
from miga_bench.backbones.tiny.tasks import DenoiserTask, VaeTask
from miga_bench.backbones.tiny.vae_clip import use_whole_clips


def train_vae(config: TrainConfig, out: Path) -> None:
    """Stage one; writes ``vae.pt``, the averaged weights."""
    if (out / "vae.pt").exists():
        return
    L.seed_everything(config.seed, verbose=False)
    settings = config.vae
    clips = RenderedClips(config.seed, settings.steps, settings.frames_per_step)
    task = VaeTask(config)
    fit(config, task, clips, out, "vae")
    torch.save(task.average.state_dict(), out / "vae.pt")


def make_latents(config: TrainConfig, out: Path) -> None:
    """Latents of the training clips, in as many processes as training uses."""
    if len(list((out / "latents").glob("captions-*.json"))) < config.processes:
        in_processes(config.processes, _make_share, config, out)


def train_denoiser(config: TrainConfig, out: Path) -> None:
    """Stage two; writes the whole diffusers folder.

    Args:
        config: What to train.
        out: Training folder with ``vae.pt`` and ``latents``.
    """
    L.seed_everything(config.seed + 1, verbose=False)
    settings = config.denoiser
    clips = LatentClips(
        out / "latents", config.seed, settings.steps, settings.batch, settings.dropout
    )
    task = DenoiserTask(config)
    fit(config, task, clips, out, "denoiser")
    torch.save(task.average.state_dict(), out / "denoiser.pt")
    export(config, out, out / "denoiser.pt", out / "weights")


def export(config: TrainConfig, out: Path, denoiser: Path, folder: Path) -> None:
    """Write the diffusers folder from trained parts.

    Args:
        config: What they were trained with.
        out: Training folder with ``vae.pt`` and ``latents``.
        denoiser: Averaged weights of stage two; a snapshot will do.
        folder: Where to write.
    """
    vae = _load_vae(config, out)
    _, _, mean, std = load_latents(out / "latents")
    models.save_vae(vae, mean.flatten(), std.flatten(), folder)
    task = DenoiserTask(config)
    average: Any = task.average
    average.load_state_dict(torch.load(denoiser, weights_only=True))
    models.save_denoiser(
        average.transformer, average.text_encoder, task.tokenizer, config.denoiser.shift, folder
    )


def _load_vae(config: TrainConfig, out: Path) -> Any:
    vae = models.make_vae(config.vae)
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    return vae.eval()


def _make_share(part: int, config: TrainConfig, out: Path) -> None:
    clips = config.denoiser.clips // config.processes
    vae = use_whole_clips(_load_vae(config, out))
    compute_latents(vae, config.seed, clips, out / "latents", part)
