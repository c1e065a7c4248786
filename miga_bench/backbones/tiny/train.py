"""Train the tiny Wan-family model from scratch: ``python -m miga_bench.backbones.tiny.train``.

Two stages on two CPU cores: the autoencoder on freshly rendered clips, then the denoiser with its
text encoder on latents computed once. A stage whose result is already in ``--out`` is not repeated.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader

from miga_bench.backbones.tiny import models
from miga_bench.backbones.tiny.config import TrainConfig, quick
from miga_bench.backbones.tiny.data import (
    LatentClips,
    RenderedClips,
    compute_latents,
    load_latents,
)
from miga_bench.backbones.tiny.tasks import Averaged, DenoiserTask, Snapshots, VaeTask
from miga_bench.backbones.tiny.vae_clip import use_whole_clips


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Train the tiny Wan-family model from scratch.")
    parser.add_argument("--out", type=Path, default=Path("train/wan"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="smoke run of a minute")
    parser.add_argument(
        "--stage", choices=("vae", "latents", "denoiser", "all"), default="all", help="one stage"
    )
    parser.add_argument(
        "--resume",
        type=int,
        default=0,
        metavar="STEP",
        help="continue the denoiser from its last snapshot, counted as STEP, with a new warm-up",
    )
    parser.add_argument("--steps", type=int, help="steps of the denoiser, in all")
    options = parser.parse_args(arguments)
    config = quick(TrainConfig()) if options.quick else TrainConfig()
    if options.steps:
        config = replace(config, denoiser=replace(config.denoiser, steps=options.steps))
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[[TrainConfig, Path], None]] = {
        "vae": train_vae,
        "latents": make_latents,
        "denoiser": functools.partial(train_denoiser, first=options.resume),
    }
    for name, stage in stages.items():
        if options.stage in (name, "all"):
            start = time.monotonic()
            stage(config, options.out)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


def train_vae(config: TrainConfig, out: Path) -> None:
    """Stage one; writes ``vae.pt``, the averaged weights."""
    if (out / "vae.pt").exists():
        return
    L.seed_everything(config.seed, verbose=False)
    settings = config.vae
    clips = RenderedClips(config.seed, settings.steps, settings.frames_per_step)
    task = VaeTask(config)
    _fit(config, task, clips, out / "vae-so-far.pt")
    torch.save(task.average.state_dict(), out / "vae.pt")


def make_latents(config: TrainConfig, out: Path) -> None:
    """Latents of the training clips, in as many processes as training uses."""
    folder = out / "latents"
    if list(folder.glob("latents-*.pt")):
        return
    share = config.denoiser.clips // config.processes
    context = get_context("spawn")
    workers = [
        context.Process(target=_make_share, args=(config, out, share, part))
        for part in range(config.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError("a process computing latents failed; its message is above")


def train_denoiser(config: TrainConfig, out: Path, first: int = 0) -> None:
    """Stage two; writes the whole diffusers folder.

    Args:
        config: What to train.
        out: Training folder with ``vae.pt`` and ``latents``.
        first: Step to continue from with the averaged weights of the last snapshot; 0 begins anew.
    """
    L.seed_everything(config.seed + 1 + first, verbose=False)
    settings = config.denoiser
    clips = LatentClips(
        out / "latents", config.seed, settings.steps, settings.batch, settings.dropout, first
    )
    task = DenoiserTask(config)
    if first:
        so_far = torch.load(out / "denoiser-so-far.pt", weights_only=True)
        task.net.load_state_dict(so_far)
        task.average.load_state_dict(so_far)
        task.steps -= first
    _fit(config, task, clips, out / "denoiser-so-far.pt")
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


def _fit(config: TrainConfig, task: Averaged, clips: Any, snapshot: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=config.processes,
        # Single pictures do not reach the layers that resample time.
        strategy="ddp_spawn_find_unused_parameters_true" if config.processes > 1 else "auto",
        precision="bf16-mixed",
        max_steps=task.steps,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[
            TQDMProgressBar(refresh_rate=50),
            Snapshots(snapshot, max(1, task.steps // config.snapshots)),
        ],
    )
    trainer.fit(task, DataLoader(clips, batch_size=None))


def _load_vae(config: TrainConfig, out: Path) -> Any:
    vae = models.make_vae(config.vae)
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    return vae.eval()


def _make_share(config: TrainConfig, out: Path, clips: int, part: int) -> None:
    torch.set_num_threads(1)
    vae = use_whole_clips(_load_vae(config, out))
    compute_latents(vae, config.seed, clips, out / "latents", part)


if __name__ == "__main__":
    sys.exit(main())
