"""What of a model on the Hugging Face Hub is on this machine, without asking the network."""

from __future__ import annotations

from miga_bench.backbones import BACKBONES

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
