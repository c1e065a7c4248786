"""Text encoder and autoencoder of a model in PyTorch, beside its exported denoiser."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from miga_bench.backbones import entry_of
from miga_bench.backbones.residence import Residence, pick_dtype
from miga_bench.errors import UserError
from miga_bench.export.facts import ExportFacts


class TorchParts:
    """What an export folder is without, from the weights that it was exported from.

    Args:
        facts: Of the folder; the model is found by the name in it.
        missing: What the folder is without, as a user reads it.
        device: Where the parts run, as torch names it.

    Raises:
        UserError: The model is not there, or has other weights than were exported.
    """

    def __init__(self, facts: ExportFacts, missing: str, device: str) -> None:
        self.family, self._residence = facts.family, Residence(torch.device(device), offload=False)
        remedy = f"export it by miga-bench export onnx {facts.name} -o FOLDER, all parts"
        try:
            self.source: Any = self._open(facts.name)
            digest = self.source.weights_hash()
        except UserError as error:
            raise UserError(
                f"{facts.folder} holds no {missing}, and {facts.name} in PyTorch, which would do, is not to be"
                f" had ({error}); {remedy}"
            ) from None
        if digest != facts.weights_hash.split("+")[0]:  # a merged LoRA is the denoiser's alone
            raise UserError(
                f"{facts.folder} holds no {missing}, and {facts.name} in PyTorch has other weights now than"
                f" were exported: {remedy}"
            )

    def _open(self, name: str) -> Any:
        where = entry_of(name).where
        if self.family == "videocrafter2":
            from miga_bench.backbones import vc2_checkpoint

            return vc2_checkpoint.open_source(where)
        from miga_bench.backbones import wan

        return wan.open_source(where)

    @cached_property
    def text(self) -> Any:
        """The text side, as the family's backbone has it."""
        if self.family == "videocrafter2":
            from miga_bench.backbones import videocrafter2

            return videocrafter2.make_text(self.source, self._residence)
        from miga_bench.backbones import wan

        dtype = pick_dtype(None, self._residence.device)
        return wan.make_text(self.source, self._residence, dtype)

    @cached_property
    def vae(self) -> Any:
        """The autoencoder, float32."""
        with torch.inference_mode(mode=False):
            return self.source.vae(torch.float32, self._residence.device)

    def decoder(self) -> Any:
        """Return a fresh streaming decoder for one video."""
        if self.family == "videocrafter2":
            from miga_bench.backbones.vc2_vae import VideoCrafterStreamingDecoder

            return VideoCrafterStreamingDecoder(self.vae)
        from miga_bench.backbones.wan_vae import WanStreamingDecoder

        return WanStreamingDecoder(self.vae)

    @property
    def pixels(self) -> int:
        """How many pixels wide one latent is."""
        if self.family == "videocrafter2":
            from miga_bench.backbones import vc2_vae

            return vc2_vae.spatial_factor(self.vae)
        from miga_bench.backbones import wan_vae

        return wan_vae.spatial_factor(self.vae)
