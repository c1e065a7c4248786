"""The training stages, whatever the family: autoencoder, latents, denoiser with its text encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from miga_bench.backbones.tiny.fit import fit, in_processes
from miga_bench.backbones.tiny.latents import StoredClips
from miga_bench.backbones.tiny.tasks import AutoencoderTask, Averaged


def _as_it_is(task: Any, config: Any, out: Path) -> None:
    """Begin stage two with what the task was made of."""


@dataclass(frozen=True)
class Family:
    """What the stages are to be told of a family; ``config`` below is one of its configurations.

    Attributes:
        config: Makes the configuration of the shipped weights.
        quick: Makes a configuration that of a smoke run.
        make_vae: Makes a fresh autoencoder of ``config.vae``.
        vae_task: Stage one of a configuration.
        pictures: What stage one reads.
        compute: ``compute(vae, config, clips, folder, part)`` writes a share of the latents.
        clips: What stage two reads.
        denoiser_task: Stage two of a configuration; it has a ``tokenizer``.
        before: ``before(task, config, out)`` readies stage two.
        save: ``save(vae, task, config, latents, folder)`` writes the model from its parts; the
            averaged weights are the task's, the latents' folder tells their statistics.
    """

    config: Callable[[], Any]
    quick: Callable[[Any], Any]
    make_vae: Callable[[Any], Any]
    vae_task: Callable[[Any], AutoencoderTask]
    pictures: Callable[[Any], IterableDataset[Tensor]]
    compute: Callable[[Any, Any, int, Path, int], None]
    clips: type[StoredClips[Any]]
    denoiser_task: Callable[[Any], Averaged]
    save: Callable[[Any, Any, Any, Path, Path], None]
    before: Callable[[Any, Any, Path], None] = _as_it_is


def train_vae(family: Family, config: Any, out: Path) -> None:
    """Stage one; writes ``vae.pt``, the averaged weights."""
    if (out / "vae.pt").exists():
        return
    L.seed_everything(config.seed, verbose=False)
    task = family.vae_task(config)
    fit(config, task, family.pictures(config), out, "vae")
    torch.save(task.average.state_dict(), out / "vae.pt")


def make_latents(family: Family, config: Any, out: Path) -> None:
    """Latents of the training clips, in as many processes as training uses."""
    if len(list((out / "latents").glob("captions-*.json"))) < config.processes:
        in_processes(config.processes, _make_share, family, config, out)


def train_denoiser(family: Family, config: Any, out: Path) -> None:
    """Stage two; writes the whole folder.

    Args:
        family: Whose.
        config: What to train.
        out: Training folder with ``vae.pt`` and ``latents``.
    """
    L.seed_everything(config.seed + 1, verbose=False)
    settings = config.denoiser
    clips = family.clips(
        out / "latents", config.seed, settings.steps, settings.batch, settings.dropout
    )
    task = family.denoiser_task(config)
    family.before(task, config, out)
    fit(config, task, clips, out, "denoiser")
    torch.save(task.average.state_dict(), out / "denoiser.pt")
    export(family, config, out, out / "denoiser.pt", out / "weights")


def export(family: Family, config: Any, out: Path, denoiser: Path, folder: Path) -> None:
    """Write the model's folder from trained parts.

    Args:
        family: Whose.
        config: What they were trained with.
        out: Training folder with ``vae.pt`` and ``latents``.
        denoiser: Averaged weights of stage two; a snapshot will do.
        folder: Where to write.
    """
    task = family.denoiser_task(config)
    task.average.load_state_dict(torch.load(denoiser, weights_only=True))
    family.save(load_vae(family, config, out), task, config, out / "latents", folder)


def load_vae(family: Family, config: Any, out: Path) -> Any:
    """Return the autoencoder that stage one left."""
    vae = family.make_vae(config.vae)
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    return vae.eval()


def _make_share(part: int, family: Family, config: Any, out: Path) -> None:
    clips = config.denoiser.clips // config.processes
    family.compute(load_vae(family, config, out), config, clips, out / "latents", part)
