"""What both families' training shares: the Lightning Trainer, and work dealt to processes."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch.utils.data import DataLoader

from miga_bench.backbones.tiny.tasks import Averaged


def fit(config: Any, task: Averaged, batches: Any, out: Path, name: str) -> None:
    """Train a stage, from where an earlier try was stopped if there was one.

    Data and noise depend on the step alone, so a stage that was stopped ends as if it had not been.

    Args:
        config: Its family's; says how many processes and snapshots.
        task: The stage; its averaged weights are trained in place.
        batches: Iterable dataset of whole batches; ``first`` is set to the step to begin with.
        out: Training folder.
        name: Of the stage; its snapshots are ``NAME.ckpt`` there.
    """
    snapshot = out / f"{name}.ckpt"
    if snapshot.exists():
        batches.first = torch.load(snapshot, weights_only=True, mmap=True)["global_step"]
    every = max(1, task.steps // config.snapshots)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=config.processes,
        # Single pictures do not reach the layers of a video autoencoder that resample time.
        strategy="ddp_spawn_find_unused_parameters_true" if config.processes > 1 else "auto",
        precision="bf16-mixed",
        max_steps=task.steps,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_model_summary=False,
        callbacks=[
            TQDMProgressBar(refresh_rate=50),
            ModelCheckpoint(out, name, every_n_train_steps=every, enable_version_counter=False),
        ],
    )
    trainer.fit(
        task,
        DataLoader(batches, batch_size=None),
        ckpt_path=snapshot if snapshot.exists() else None,
        weights_only=True,
    )


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(part, *arguments)`` for part 0 to ``count`` - 1, each in a process of one thread.

    Raises:
        RuntimeError: One of them failed.
    """
    context = get_context("spawn")
    workers = [
        context.Process(target=_on_one_thread, args=(work, part, *arguments))
        for part in range(count)
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            if worker.exitcode:
                raise RuntimeError("a process computing latents failed; its message is above")
    finally:
        for worker in workers:
            if worker.is_alive():  # the others' work is not wanted without the failed one's
                worker.kill()
                worker.join()


def _on_one_thread(work: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    work(*arguments)
