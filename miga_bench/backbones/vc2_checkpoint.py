"""Where the parts of a VideoCrafter2 model lie on disk, and how they are loaded.

Two layouts are read: diffusers' folders (``unet/``, ``vae/``, ``text_encoder/``, ``tokenizer/``), and
the published ``model.ckpt``, one table of everything. The latter is written once in the former layout
to our cache, as safetensors, and read from there; its tokenizer, which it does not hold, is CLIP's.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from miga_bench.backbones.checkpoint import (
    BIG_ENCODER,
    construct,
    fill,
    fingerprint_of,
    named_tensors,
    read_json,
    read_pickle,
    read_state,
    sha256_of,
    weight_files,
)
from miga_bench.backbones.hub_files import download
from miga_bench.backbones.vc2_denoiser import KEEP_FLOAT32, VideoCrafterUNet
from miga_bench.backbones.vc2_keys import (
    convert_text,
    convert_unet,
    convert_vae,
    split_checkpoint,
    table_of,
    text_config,
    unet_config,
    vae_config,
)
from miga_bench.errors import UserError
from miga_bench.offline import cache_folder

CHECKPOINT = "model.ckpt"
TOKENIZER = "openai/clip-vit-large-patch14"  # the vocabulary is that of every CLIP
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)

STEM = "diffusion_pytorch_model"
CACHE_VERSION = "1"  # of what the conversion writes

_POSITIONS = "embeddings.position_ids"


class VideoCrafterSource:
    """A VideoCrafter2 model in diffusers' layout; every method reads only what it needs.

    Attributes:
        root: Its folder.
        side: The folder whose ``backbone.json`` counts.
        text_comes_later: Whether the text encoder may not be there until it has to run.
    """

    text_comes_later = False

    def __init__(self, root: Path, side: Path | None = None) -> None:
        self.root = root
        self.side = side or root

    def unet(self, dtype: torch.dtype, device: torch.device) -> VideoCrafterUNet:
        """Load the denoiser; its embeddings of time and rate stay float32."""
        folder = self.root / "unet"
        config, state = read_json(folder / "config.json"), read_state(weight_files(folder, STEM))
        return make_unet(config, state, str(folder), dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> AutoencoderKL:
        """Load the autoencoder."""
        folder = self.root / "vae"
        config, state = read_json(folder / "config.json"), read_state(weight_files(folder, STEM))
        if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
            raise UserError(
                f"{folder} holds {config['_class_name']}, not AutoencoderKL: give VideoCrafter2's"
            )
        return make_vae(config, convert_vae(state), str(folder), dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> CLIPTextModel:
        """Load the text encoder."""
        folder = self.root / "text_encoder"
        config = read_json(folder / "config.json")
        if config.get("model_type") != "clip_text_model":
            raise UserError(
                f"{folder} holds the model type {config.get('model_type')}; CLIP's is needed"
            )
        state = read_state(self.text_files())
        return make_text_encoder(CLIPTextConfig(**config), state, str(folder), dtype, device)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.root / "tokenizer"

    def text_files(self) -> list[Path]:
        """Return the weight files of the text encoder."""
        return weight_files(self.root / "text_encoder", "model")

    def text_is_big(self) -> bool:
        """Tell whether the text encoder is worth caching its embeddings and unloading it."""
        return sum(file.stat().st_size for file in self.text_files()) >= BIG_ENCODER

    def weights_hash(self) -> str:
        """Hash the denoiser's and the autoencoder's weights (seconds per GiB)."""
        files = [f for part in ("unet", "vae") for f in weight_files(self.root / part, STEM)]
        return sha256_of(files, self.root)

    @cached_property
    def text_identity(self) -> str:
        """What tells this text encoder and tokenizer from others; cheap."""
        # not all of a folder: CLIP's on the Hub is shared, and other programs fetch more of it
        paths = (self.tokenizer / name for name in TOKENIZER_FILES)
        tokenizer = [path for path in paths if path.is_file()]
        texts = fingerprint_of(self.text_files(), self.root)
        return f"{texts} {fingerprint_of(tokenizer, self.tokenizer)}"


class CheckpointFile(VideoCrafterSource):
    """The published ``model.ckpt``, converted when first opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(converted(path), path.parent)
        self.path = path

    @cached_property
    def tokenizer(self) -> Path:
        """``tokenizer/`` beside the checkpoint, or else CLIP's from the Hub."""
        beside = self.path.parent / "tokenizer"
        if beside.is_dir():
            return beside
        try:
            return download(TOKENIZER, (), TOKENIZER_FILES)
        except UserError:
            raise UserError(
                f"{self.path} holds no tokenizer and CLIP's cannot be fetched; where there is a "
                f"network run `hf download {TOKENIZER} {' '.join(TOKENIZER_FILES)} --local-dir {beside}`"
            ) from None

    def weights_hash(self) -> str:
        """Hash the checkpoint (seconds per GiB)."""
        return sha256_of([self.path], self.path.parent)


def open_source(where: str | Path) -> VideoCrafterSource:
    """Return the model in a folder or file, or in a repository on the Hub.

    Raises:
        UserError: None is there.
    """
    root = Path(where).expanduser()
    if not root.exists():
        if isinstance(where, Path):
            raise UserError(f"no such folder: {root}")
        root = download(where, ("unet", "vae", "text_encoder", "tokenizer"), (CHECKPOINT,))
    if root.is_file():
        return CheckpointFile(root)
    if (root / "unet").is_dir():
        return VideoCrafterSource(root)
    if (root / CHECKPOINT).exists():
        return CheckpointFile(root / CHECKPOINT)
    raise UserError(
        f"{root} holds no VideoCrafter2 model: neither a diffusers folder (unet/, vae/, "
        f"text_encoder/, tokenizer/) nor {CHECKPOINT}"
    )


def converted(path: Path) -> Path:
    """Return a checkpoint's parts as a diffusers folder in our cache, writing it if need be.

    The folder is named by the file's name, size, first and last MiB (which lists the checksums of
    all its tensors) and is complete as soon as it is there.

    Raises:
        UserError: The checkpoint is damaged, carries code, or is another model's; or the cache
            cannot be written.
    """
    key = fingerprint_of([path], path.parent)[:24]
    folder = cache_folder("videocrafter2") / f"{key}-{CACHE_VERSION}"
    if folder.is_dir():
        return folder
    try:
        root = folder.parent.parent
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"videocrafter2-{key}.lock"):  # of many processes one converts
            if not folder.is_dir():
                _convert(path, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint cannot be converted to {folder} ({error}); "
            "let MIGA_BENCH_CACHE name a folder with room for it"
        ) from None
    return folder


def _convert(path: Path, folder: Path) -> None:
    source = str(path)
    state = named_tensors(table_of(read_pickle(path)), source)
    unet, vae, text = split_checkpoint(state, source)
    # Checked before anything is written: modules without memory take what the file holds.
    parts: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
        "unet": (unet_config(unet, source), convert_unet(unet), STEM),
        "vae": (vae_config(vae, source), convert_vae(vae), STEM),
        "text_encoder": (text_config(text, source).to_dict(), convert_text(text), "model"),
    }
    nowhere = torch.device("meta")
    make_unet(parts["unet"][0], parts["unet"][1], source, torch.float32, nowhere)
    make_vae(parts["vae"][0], parts["vae"][1], source, torch.float32, nowhere)
    make_text_encoder(
        text_config(text, source), parts["text_encoder"][1], source, torch.float32, nowhere
    )
    _write(folder, parts)


def _write(
    folder: Path, parts: Mapping[str, tuple[dict[str, Any], dict[str, Tensor], str]]
) -> None:
    part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    try:
        for name, (config, state, stem) in parts.items():
            (part / name).mkdir(parents=True)
            save_file(_own(state), part / name / f"{stem}.safetensors", {"format": "pt"})
            (part / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that are parts of others memory of their own, as safetensors wants it."""
    return {
        key: tensor.contiguous()
        if tensor.untyped_storage().nbytes() == tensor.nbytes
        else tensor.clone(memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }


def make_unet(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> VideoCrafterUNet:
    """Build the denoiser's module and fill it.

    Raises:
        UserError: It is not VideoCrafter2's denoiser, or the keys do not fit.
    """
    kind = config.get("_class_name", "")
    if "UNet2D" in kind or "Motion" in kind:
        raise UserError(f"{source} holds {kind}, not VideoCrafter2's denoiser: give its own folder")
    model: Any = construct(VideoCrafterUNet, config, source)
    return fill(model, state, source, dtype, device, KEEP_FLOAT32)


def make_vae(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> AutoencoderKL:
    """Build the autoencoder's module and fill it.

    Raises:
        UserError: The keys do not fit.
    """
    model: Any = construct(AutoencoderKL, config, source)
    return fill(model, state, source, dtype, device)


def make_text_encoder(
    config: CLIPTextConfig,
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> CLIPTextModel:
    """Build the text encoder's module and fill it.

    Keys may have the prefix ``text_model.``, as transformers wrote them before version 5.
    """
    with torch.device("meta"):
        model: Any = CLIPTextModel(config)
    own = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    fill(model, own, source, dtype, device, aliases=(_POSITIONS,))
    # This table is in no file.
    places = torch.arange(config.max_position_embeddings, device=device)
    model.embeddings.position_ids = places.expand(1, -1)
    return model
