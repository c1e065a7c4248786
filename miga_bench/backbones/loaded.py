"""What backbones of networks loaded from files do alike, whatever the family."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from miga_bench.backbones import BACKBONES, memory
from miga_bench.backbones.base import Backbone, FrameAttention
from miga_bench.backbones.embedding_cache import EmbeddingCache
from miga_bench.backbones.encoder_text import EncoderText
from miga_bench.backbones.residence import Residence
from miga_bench.errors import UserError, is_out_of_memory
from miga_bench.offline import cache_folder

Text = TypeVar("Text", bound=EncoderText)
NETWORKS = ("transformer", "unet", "vae", "text_encoder")  # folders whose configuration decides
OF_A_VIDEO = ("height", "width", "negative_prompt")


class LoadedBackbone(Backbone):
    """A backbone whose denoiser is a network of ours behind the ``Denoiser`` interface.

    A family sets the attributes in its constructor.

    Attributes:
        defaults: All it was loaded with that its weights do not say, a dataclass.
        source: The model on disk.
        vae: The shared autoencoder; sessions read it and change nothing.
        text: Tokenizer, encoder and cache of embeddings.
    """

    denoiser: Any
    defaults: Any
    source: Any
    vae: Any
    text: EncoderText
    _residence: Residence
    _dtype: torch.dtype

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Numbers per token that the denoiser reads."""

    @abstractmethod
    def is_ours(self) -> bool:
        """Tell whether the denoiser is still the family's own module, and not an engine."""

    def check_channels(self, config: Any, latents: int) -> None:
        """Check that a denoiser of this configuration fits latents of so many channels.

        Raises:
            UserError: It does not.
        """
        if not config.in_channels == config.out_channels == latents:
            raise UserError(
                f"{self.name}: the denoiser takes {config.in_channels} channels and gives "
                f"{config.out_channels}, but the autoencoder's latents have {latents}; take all parts from"
                " one model"
            )

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the prompts' embeddings ``[len(prompts), S, D]``, padded as the family does."""
        text = self.text.encode(prompts)
        if text.shape[-1] != self.text_width:
            raise UserError(
                f"{self.name}: the text encoder gives {text.shape[-1]} numbers per token, "
                f"the denoiser reads {self.text_width}; take both from one model"
            )
        return text.to(self._residence.device, self._dtype)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that cannot be encoded; the encoder does not run.

        Raises:
            UserError: One is too long, or the encoder has to run for it and its files are missing.
        """
        if self.text.needs_encoder(prompts):
            self.source.text_files()

    def attending(self, attention: FrameAttention) -> AbstractContextManager[None]:
        """Return a context in which ``attention`` does the network's attention over frames."""
        if not self._is_open():
            raise UserError(
                f"{self.name}: the attention of a compiled or exported denoiser cannot be changed; "
                "load the model uncompiled, or use fifo, scaling-noise or miga"
            )
        context: AbstractContextManager[None] = self.denoiser.attending(attention)
        return context

    @property
    def can_cache(self) -> bool:
        """Whether the denoiser takes a shortcut: ours does, unless it is compiled."""
        return self._is_open()

    def _is_open(self) -> bool:
        """Tell whether the denoiser runs our Python code, and neither a compiled graph nor an engine."""
        modules = (self.denoiser, getattr(self.denoiser, "network", None))
        compiled = any(getattr(part, "_compiled_call_impl", None) is not None for part in modules)
        return not compiled and self.is_ours()

    def default_batch(self) -> int:
        """Return how many windows one denoiser call may hold in the memory that is free now."""
        if self.is_ours():
            return memory.default_batch(self)
        fits = getattr(self.denoiser, "rows_that_fit", None)  # what another takes only it knows
        return memory.CPU_WINDOWS if fits is None else max(1, int(fits()) // 2)

    def free_bytes(self) -> int | None:
        """Return the memory that is free where the denoiser runs, None if that is not known."""
        return memory.free_bytes(self._residence.device)

    @property
    def device(self) -> str:
        """Where the denoiser runs, as torch names it."""
        return str(self._residence.device)

    # Attributes in the interface, where a user's backbone sets them; here they follow from what was loaded.

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """Type of the denoiser's weights, as torch names it."""
        return str(self._dtype).removeprefix("torch.")

    @cached_property
    def weights_hash(self) -> str:  # type: ignore[override]
        """SHA-256 over the denoiser's and the autoencoder's weight files; made when first asked."""
        digest: str = self.source.weights_hash()
        return digest

    @cached_property
    def configuration_hash(self) -> str | None:  # type: ignore[override]
        """SHA-256 over what decides a video beside ``weights_hash``; None for a model that has a name.

        It covers window, rates, shift or schedule, the networks' configurations, tokenizer and text encoder.
        Size and negative prompt are left out, which every video tells for itself. What a name stands for comes
        with the package, or from one place on the Hub.
        """
        if self.name in BACKBONES:
            return None
        known = {k: v for k, v in asdict(self.defaults).items() if k not in OF_A_VIDEO}
        total = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
        # of a model on the Hub the text encoder comes later: its identity names repository and commit
        later = ("text_encoder",) if self.source.text_comes_later else ()
        for part in NETWORKS:
            path = self.source.root / part / "config.json"
            if path.is_file() and part not in later:
                total.update(f"{part} ".encode() + path.read_bytes())
        total.update(self.source.text_identity.encode())
        return total.hexdigest()


def text_side(
    kind: type[Text],
    source: Any,
    residence: Residence,
    load_encoder: Callable[[torch.dtype, torch.device], Any],
    dtype: torch.dtype,
    cached: bool,
) -> Text:
    """Return a model's text side, whose encoder comes when a prompt is new.

    An encoder that does not fit on the device runs on the CPU, and one line says so. With offloading, one whose
    embeddings are not cached waits in main memory between uses, as the other networks do.

    Args:
        kind: The family's class.
        source: The model on disk.
        residence: Where the encoder runs, and what has to leave before.
        load_encoder: The source's loader.
        dtype: Of the encoder.
        cached: Keep embeddings on disk and drop the encoder after use.
    """
    crowded: list[torch.device] = []
    waiting: list[Any] = []

    def load() -> Any:
        if waiting:
            if not crowded:
                residence.bring(waiting[0])
            return waiting[0]
        encoder = load_anew()
        if residence.offload and not cached:
            residence.add(encoder)
            waiting.append(encoder)
        return encoder

    def load_anew() -> Any:
        device = residence.bring(None)
        with torch.inference_mode(mode=False):
            if not crowded:
                try:
                    return load_encoder(dtype, device)
                except Exception as error:
                    if device.type == "cpu" or not is_out_of_memory(error):
                        raise
                crowded.append(device)  # only now is the error gone, and what was loaded with it
                memory.tell_crowded(device)
            return load_encoder(dtype, torch.device("cpu"))

    return kind(
        source.tokenizer,
        load,
        dtype,
        lambda: source.text_identity,
        cache=EmbeddingCache(cache_folder("text")) if cached else None,
        keep=not (cached or residence.offload),
    )
