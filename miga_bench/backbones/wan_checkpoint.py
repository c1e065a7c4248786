"""Where the parts of a Wan2.1 model lie on disk, and how they are loaded.

Two layouts are read: diffusers' folders (``transformer/``, ``vae/``, ``text_encoder/``,
``tokenizer/``, ``scheduler/``) and the files the authors published
(``diffusion_pytorch_model.safetensors``, ``Wan2.1_VAE.pth``, ``models_t5_umt5-xxl-enc-bf16.pth``,
``google/umt5-xxl/``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from miga_bench.backbones.checkpoint import (
    BIG_ENCODER,
    construct,
    fill,
    fingerprint_of,
    read_json,
    read_state,
    sha256_of,
    weight_files,
)
from miga_bench.errors import UserError

ORIGINAL_TRANSFORMER = "diffusion_pytorch_model.safetensors"
INDEX = "model_index.json"  # of diffusers' layout
ORIGINAL_VAE = "Wan2.1_VAE.pth"
ORIGINAL_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
ORIGINAL_TOKENIZER = "google/umt5-xxl"

PUBLISHED_TEXT_WIDTH = 4096
# of the authors' scheduler file, which neither their sampler nor MIGA's release heeds
PUBLISHED_SHIFT = 3.0

# Parts of the denoiser that stay float32: diffusers' list, and the head, which the authors compute so, too.
KEEP_FLOAT32 = (
    "rope",
    "time_embedder",
    "scale_shift_table",
    "norm1",
    "norm2",
    "norm3",
    "proj_out",
)

# transformers ties this one to shared.weight; files may hold either name or both.
EMBEDDING, EMBEDDING_ALIAS = "shared.weight", "encoder.embed_tokens.weight"


def check_index(root: Path) -> None:
    """Refuse a pipeline whose levels are not all one denoiser's, as Wan2.2's are.

    Raises:
        UserError: It is one, or its index cannot be read.
    """
    index = read_json(root / INDEX) if (root / INDEX).exists() else {}
    second = index.get("transformer_2") not in (None, [None, None])
    if second or index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
        raise UserError(
            f"{root / INDEX} is of a Wan2.2 model, whose levels have denoisers of their own or whose first"
            " frame has a level of its own: give a text-to-video model of Wan2.1"
        )


def find_source(root: Path) -> WanSource:
    """Tell the layout of a folder.

    Raises:
        UserError: It is no folder, or holds neither layout.
    """
    if not root.exists():
        raise UserError(f"no such folder: {root}")
    if not root.is_dir():
        raise UserError(f"{root} is a file; give the folder that holds the model")
    if (root / "transformer").is_dir() or (root / INDEX).exists():
        check_index(root)
        return DiffusersFolder(root)
    marks = (
        ORIGINAL_VAE,
        ORIGINAL_TEXT,
        ORIGINAL_TRANSFORMER,
        f"{ORIGINAL_TRANSFORMER}.index.json",
    )
    if any((root / name).exists() for name in marks):
        return OriginalFolder(root)
    raise UserError(
        f"{root} holds no Wan2.1 model: neither a diffusers folder (transformer/, vae/, "
        f"text_encoder/, tokenizer/) nor the original files ({ORIGINAL_TRANSFORMER}, ...)"
    )


class WanSource(ABC):
    """A Wan2.1 model on disk; every method reads only what it needs.

    Attributes:
        text_comes_later: Whether the text encoder may not be there until it has to run.
    """

    text_comes_later = False

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def transformer(self, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
        """Load the denoiser; the parts diffusers keeps in float32 stay so."""

    @abstractmethod
    def vae(self, dtype: torch.dtype, device: torch.device) -> AutoencoderKLWan:
        """Load the autoencoder."""

    @abstractmethod
    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> UMT5EncoderModel:
        """Load the text encoder."""

    @property
    @abstractmethod
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""

    @abstractmethod
    def model_files(self) -> list[Path]:
        """Return the weight files of the denoiser and the autoencoder."""

    @abstractmethod
    def text_files(self) -> list[Path]:
        """Return the weight files of the text encoder."""

    def flow_shift(self) -> float | None:
        """Return the timestep shift that the model asks for, if it does."""
        return self.scheduler_shift()

    def scheduler_shift(self) -> float | None:
        """Return the timestep shift of the scheduler's file, if there is one."""
        return None

    @abstractmethod
    def published(self) -> bool:
        """Tell whether this is one of the authors' models or made of one, not one trained from scratch."""

    def text_is_big(self) -> bool:
        """Tell whether the text encoder is worth caching its embeddings and unloading it."""
        return sum(file.stat().st_size for file in self.text_files()) >= BIG_ENCODER

    def weights_hash(self) -> str:
        """Hash the denoiser's and the autoencoder's weights (seconds per GiB)."""
        return sha256_of(self.model_files(), self.root)

    @cached_property
    def text_identity(self) -> str:
        """What tells this text encoder and tokenizer from others; cheap."""
        tokenizer = [path for path in self.tokenizer.rglob("*") if path.is_file()]
        return fingerprint_of([*self.text_files(), *tokenizer], self.root)


class DiffusersFolder(WanSource):
    """A folder as ``WanPipeline.save_pretrained`` writes it."""

    def transformer(self, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
        """Load ``transformer/``."""
        folder = self.root / "transformer"
        config = self._config("transformer", "WanTransformer3DModel")
        state = read_state(weight_files(folder, "diffusion_pytorch_model"))
        return make_transformer(config, state, str(folder), dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> AutoencoderKLWan:
        """Load ``vae/``."""
        folder = self.root / "vae"
        config = self._config("vae", "AutoencoderKLWan")
        state = read_state(weight_files(folder, "diffusion_pytorch_model"))
        return make_vae(config, state, str(folder), dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> UMT5EncoderModel:
        """Load ``text_encoder/``."""
        folder = self.root / "text_encoder"
        config = read_json(folder / "config.json")
        if config.get("model_type") != "umt5":
            raise UserError(
                f"{folder} holds the model type {config.get('model_type')}; UMT5 is needed"
            )
        state = read_state(self.text_files())
        return make_text_encoder(UMT5Config(**config), state, str(folder), dtype, device)

    @property
    def tokenizer(self) -> Path:
        """``tokenizer/``."""
        return self.root / "tokenizer"

    def model_files(self) -> list[Path]:
        """Return the files of ``transformer/`` and ``vae/``."""
        stem = "diffusion_pytorch_model"
        return [f for part in ("transformer", "vae") for f in weight_files(self.root / part, stem)]

    def text_files(self) -> list[Path]:
        """Return the files of ``text_encoder/``."""
        return weight_files(self.root / "text_encoder", "model")

    def flow_shift(self) -> float | None:
        """Return the scheduler's shift, unless it stands there as the authors' file has it."""
        shift = self.scheduler_shift()
        # a copy of the authors' repository is to be sampled as the repository is
        return None if self.published() and shift == PUBLISHED_SHIFT else shift

    def scheduler_shift(self) -> float | None:
        """Return ``flow_shift`` (UniPC) or ``shift`` (Euler) of ``scheduler/``."""
        path = self.root / "scheduler" / "scheduler_config.json"
        config = read_json(path) if path.exists() else {}
        shift = config.get("flow_shift", config.get("shift"))
        return None if shift is None else float(shift)

    def published(self) -> bool:
        """Tell by the width of the text: the authors' models, and those made of them, read UMT5-XXL's."""
        config = read_json(self.root / "transformer" / "config.json")
        return config.get("text_dim") == PUBLISHED_TEXT_WIDTH

    def _config(self, part: str, kind: str) -> dict[str, Any]:
        config = read_json(self.root / part / "config.json")
        if config.get("_class_name", kind) != kind:
            raise UserError(
                f"{self.root / part} holds {config['_class_name']}, not {kind}: take all"
                " parts from one model"
            )
        return config


class OriginalFolder(WanSource):
    """The files of Wan-AI's Wan2.1-T2V-1.3B, or of its larger sister in shards, as published."""

    def transformer(self, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
        """Load ``diffusion_pytorch_model.safetensors`` or its shards; the head count is in ``config.json``."""
        path = self.root / ORIGINAL_TRANSFORMER
        state = read_state(self._transformer_files())
        side = self.root / "config.json"
        config = transformer_config(state, read_json(side) if side.exists() else {}, str(path))
        state = convert_wan_transformer_to_diffusers(dict(state))
        return make_transformer(config, state, str(path), dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> AutoencoderKLWan:
        """Load ``Wan2.1_VAE.pth``."""
        path = self.root / ORIGINAL_VAE
        state = read_state([path])
        _need(state, ("encoder.conv1.weight", "conv2.weight"), str(path), "Wan2.1 autoencoder")
        config = {
            "base_dim": state["encoder.conv1.weight"].shape[0],
            "z_dim": state["conv2.weight"].shape[0],
        }
        converted = convert_wan_vae_to_diffusers(dict(state))
        return make_vae(config, converted, str(path), dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> UMT5EncoderModel:
        """Load ``models_t5_umt5-xxl-enc-bf16.pth``."""
        path = self.root / ORIGINAL_TEXT
        state = read_state([path])
        config = text_config(state, str(path))
        return make_text_encoder(config, convert_text(state), str(path), dtype, device)

    @property
    def tokenizer(self) -> Path:
        """``google/umt5-xxl/``."""
        return self.root / ORIGINAL_TOKENIZER

    def model_files(self) -> list[Path]:
        """Return the transformer's files and the autoencoder's."""
        return [*self._transformer_files(), *self._existing(ORIGINAL_VAE)]

    def _transformer_files(self) -> list[Path]:
        return weight_files(self.root, ORIGINAL_TRANSFORMER.partition(".")[0])

    def text_files(self) -> list[Path]:
        """Return the text encoder's file."""
        return self._existing(ORIGINAL_TEXT)

    def published(self) -> bool:
        """Only the authors write this layout."""
        return True

    def _existing(self, *names: str) -> list[Path]:
        for name in names:
            if not (self.root / name).exists():
                raise UserError(f"{self.root / name} is missing: fetch it again")
        return [self.root / name for name in names]


def make_transformer(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> WanTransformer3DModel:
    """Build the denoiser's module and fill it.

    Raises:
        UserError: It is not a text-to-video Wan2.1 transformer, or the keys do not fit.
    """
    if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
        raise UserError(f"{source} is an image-to-video Wan model; a text-to-video one is needed")
    model: Any = construct(WanTransformer3DModel, config, source)
    if model.config.patch_size[0] != 1:
        raise UserError(
            f"{source} joins frames into patches {list(model.config.patch_size)}; Wan2.1 does not"
        )
    fill(model, state, source, dtype, device, KEEP_FLOAT32)
    # Its tables are not in the files; only the stock forward uses them.
    rope = model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    model.rope = WanRotaryPosEmbed(*rope).to(device)
    return model


def make_vae(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> AutoencoderKLWan:
    """Build the autoencoder's module and fill it.

    Raises:
        UserError: It is not a Wan2.1 autoencoder, or the keys do not fit.
    """
    if config.get("patch_size") is not None or config.get("is_residual"):
        raise UserError(f"{source} is a Wan2.2 autoencoder; a Wan2.1 one is needed")
    model: Any = construct(AutoencoderKLWan, config, source)
    if not len(model.config.latents_mean) == len(model.config.latents_std) == model.config.z_dim:
        raise UserError(
            f"{source} needs latents_mean and latents_std of its z_dim channels: fetch its config.json again"
        )
    return fill(model, state, source, dtype, device)


def make_text_encoder(
    config: UMT5Config,
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> UMT5EncoderModel:
    """Build the text encoder's module and fill it; its two embedding tables are one."""
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    if EMBEDDING not in state and EMBEDDING_ALIAS in state:
        state = {**state, EMBEDDING: state[EMBEDDING_ALIAS]}
    fill(model, state, source, dtype, device, aliases=(EMBEDDING_ALIAS,))
    # Some transformers 5 versions leave the encoder's own table unset, which makes garbage videos.
    model.encoder.embed_tokens = model.shared
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            f"{source} left parameters of the text encoder empty: try another version of transformers"
        )
    return model


def transformer_config(
    state: Mapping[str, Tensor], side: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Read diffusers' configuration off an original checkpoint.

    Args:
        state: Tensors by original names.
        side: The original ``config.json``; without it heads are 128 wide, as in all released models.
        source: What to call the weights in an error.
    """
    if side.get("model_type", "t2v") != "t2v":
        raise UserError(f"{source} is a Wan {side['model_type']} model; a t2v one is needed")
    names = (
        "patch_embedding",
        "head.head",
        "time_embedding.0",
        "text_embedding.0",
        "blocks.0.ffn.0",
    )
    _need(state, tuple(f"{name}.weight" for name in names), source, "Wan2.1 transformer")
    patch, head, time, text, ffn = (state[f"{name}.weight"].shape for name in names)
    width, area = patch[0], patch[2] * patch[3] * patch[4]
    heads = int(side.get("num_heads", width // 128))
    if heads < 1 or width % heads:
        raise UserError(
            f"{source} is {width} wide, which {heads} heads do not divide: fetch its config.json again"
        )
    return {
        "patch_size": tuple(patch[2:]),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": patch[1],
        "out_channels": head[0] // area,
        "text_dim": text[1],
        "freq_dim": time[1],
        "ffn_dim": ffn[0],
        "num_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm3.weight" in state,
        "eps": side.get("eps", 1e-6),
    }


_TEXT_NAMES = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def convert_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original UMT5 encoder's keys to transformers'; unknown ones stay as they are."""
    converted = {}
    for key, tensor in state.items():
        parts = key.split(".", 2)
        if key == "token_embedding.weight":
            key = EMBEDDING
        elif key == "norm.weight":
            key = "encoder.final_layer_norm.weight"
        elif parts[0] == "blocks" and len(parts) == 3 and parts[2] in _TEXT_NAMES:
            key = f"encoder.block.{parts[1]}.{_TEXT_NAMES[parts[2]]}"
        converted[key] = tensor
    return converted


def text_config(state: Mapping[str, Tensor], source: str) -> UMT5Config:
    """Read transformers' configuration off an original UMT5 encoder."""
    bias, query = "blocks.0.pos_embedding.embedding.weight", "blocks.0.attn.q.weight"
    feed = "blocks.0.ffn.fc1.weight"
    _need(state, ("token_embedding.weight", bias, query, feed), source, "UMT5 encoder")
    vocabulary, width = state["token_embedding.weight"].shape
    buckets, heads = state[bias].shape
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=state[query].shape[0] // heads,
        d_ff=state[feed].shape[0],
        num_layers=1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
    )


def _need(state: Mapping[str, Tensor], keys: tuple[str, ...], source: str, what: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        raise UserError(
            f"{source} is not an original {what}: it has no {', '.join(missing)} "
            f"among its {len(state)} keys; give Wan2.1's own files"
        )
