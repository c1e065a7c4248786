"""Models on the Hugging Face Hub: what of one is on this machine, and how the rest comes here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from miga_bench.backbones import BACKBONES
from miga_bench.errors import UserError
from miga_bench.offline import downloads_off

_WEIGHTS = (
    "{0}/diffusion_pytorch_model.safetensors",
    "{0}/diffusion_pytorch_model.safetensors.index.json",
)
# family -> the files that it needs, each under any of its names
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
    """Return which files of a named backbone on the Hub are not in its cache here; no network is asked.

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


def download(
    repository: str, parts: Sequence[str], files: Sequence[str] = (), revision: str | None = None
) -> Path:
    """Return the local copy of parts of a repository, fetching what is not there.

    Args:
        repository: ``organization/name``.
        parts: Folders.
        files: Files besides ``model_index.json``, patterns allowed.
        revision: Commit, by default the newest.

    Raises:
        UserError: They are neither on disk nor within reach.
    """
    patterns = ["model_index.json", *files, *(f"{part}/*" for part in parts)]
    switch = downloads_off()
    fault: Exception | None = None
    for local in (True,) if switch else (False, True):
        # Clients fail in any way (httpx's errors, the transfer's own, OSError), also where all is here.
        try:
            return Path(
                snapshot_download(
                    repository, revision=revision, allow_patterns=patterns, local_files_only=local
                )
            )
        except Exception as error:
            fault = fault or error
    said = str(fault).strip() or type(fault).__name__
    reason = f"downloads are off ({switch})" if switch else said.splitlines()[0][:160]
    raise cannot_fetch(repository, reason)


def cannot_fetch(repository: str, reason: str) -> UserError:
    """Return the error that says how else the repository comes here."""
    return UserError(
        f"cannot fetch {repository} from the Hugging Face Hub ({reason}); where there is a "
        f"network run `hf download {repository} --local-dir DIR`, then give DIR as the backbone"
    )
