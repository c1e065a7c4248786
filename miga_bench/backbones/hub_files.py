"""What of a model on the Hugging Face Hub is on this machine, without asking the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from miga_bench.backbones import BACKBONES

OFFLINE = ("HF_HUB_OFFLINE", "MIGA_BENCH_OFFLINE")

# family -> the files that it needs, each under any of its names
_WEIGHTS = (
    "{0}/diffusion_pytorch_model.safetensors",
    "{0}/diffusion_pytorch_model.safetensors.index.json",
)
FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "wan": (
        ("model_index.json",),
        ("transformer/config.json",),
        tuple(name.format("transformer") for name in _WEIGHTS),
        ("vae/config.json",),
        tuple(name.format("vae") for name in _WEIGHTS),
        ("tokenizer/tokenizer.json", "tokenizer/spiece.model"),
        ("scheduler/scheduler_config.json",),
    ),
    "videocrafter2": (("model.ckpt", "unet/config.json"),),
}
# the same of its text encoder, which is fetched when it has to run
TEXT_FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "wan": (
        ("text_encoder/config.json",),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors.index.json"),
    ),
    "videocrafter2": (),
}


def downloads_off() -> str | None:
    """Return the environment variable that turns downloads off, None if they are on."""
    on = ("1", "true", "yes", "on")
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in on), None)


def hub_id(name: str) -> str | None:
    """Return the repository of a backbone's name; None if it lies in the package or in a folder."""
    entry = BACKBONES.get(name)
    return entry.where if entry is not None and isinstance(entry.where, str) else None


def missing_files(name: str, text: bool = False) -> list[str]:
    """Return which files of a named backbone on the Hub are not in the Hub's cache here.

    Args:
        name: A name in ``BACKBONES`` that is on the Hub.
        text: Whether its text encoder has to run.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, family = str(hub_id(name)), BACKBONES[name].family
    return [
        names[0]
        for names in (*FILES[family], *(TEXT_FILES[family] if text else ()))
        if not any(isinstance(try_to_load_from_cache(repository, one), str) for one in names)
    ]


@contextmanager
def offline() -> Iterator[None]:
    """Fetch nothing in the block: what is not on this machine is missing."""
    from huggingface_hub import constants

    before = {name: os.environ.get(name) for name in OFFLINE}
    switch = constants.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    constants.HF_HUB_OFFLINE = True  # was read from the environment when it was imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = switch
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
