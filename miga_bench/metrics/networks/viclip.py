"""ViCLIP, which compares videos with texts; from the installed ``vbench`` package.

Wang et al. (InternVid), ICLR 2024; Apache-2.0.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from miga_bench.metrics.networks import original, preprocess
from miga_bench.metrics.networks.base import Network
from miga_bench.metrics.networks.weight_files import (
    WeightFile,
    Weights,
    fill,
    locate,
    read_weights,
)

VICLIP_FILE = WeightFile(
    network="ViCLIP",
    place="ViCLIP/ViClip-InternVid-10M-FLT.pth",
    url="https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/"
    "ViClip-InternVid-10M-FLT.pth",
)
VOCABULARY = WeightFile(
    network="CLIP's tokenizer",
    place="ViCLIP/bpe_simple_vocab_16e6.txt.gz",
    url="https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
)
_INSTALL = (
    f"{original.INSTALL} && pip install torchvision timm decord einops regex ftfy"
    ' "setuptools<81"  # decord: x86-64 only'
)


class VideoTextEncoder(nn.Module, Network):
    """Turns a few frames of a video and a text into comparable vectors."""

    @abstractmethod
    def embed_video(self, frames: Tensor) -> Tensor:
        """Return a vector ``[D]`` of uint8 frames ``[8, 3, 224, 224]``."""

    @abstractmethod
    def embed_text(self, text: str) -> Tensor:
        """Return a vector ``[D]`` of a text."""


class ViClip(VideoTextEncoder):
    """ViCLIP ViT-L/14 trained on InternVid-10M-FLT.

    Args:
        weights: A state dict or a file; None for the published file.

    Raises:
        UserError: ``vbench`` or what ViCLIP needs is not installed; or see ``read_weights``.
    """

    def __init__(self, weights: Weights = None) -> None:
        super().__init__()
        parts = (
            original.module(f"third_party.ViCLIP.{p}", _INSTALL)
            for p in ("viclip", "simple_tokenizer")
        )
        viclip, tokenizer = parts
        # the original's code fetches the vocabulary itself; then it is where it looks
        words = tokenizer.SimpleTokenizer(str(locate(VOCABULARY)))
        self.model = viclip.ViCLIP(tokenizer=words, pretrain=None)
        loaded = read_weights(weights, VICLIP_FILE)
        fill(self.model, loaded.content.get("model", loaded.content), VICLIP_FILE.network)
        self.label = loaded.label("viclip")
        self.provenance = loaded.provenance(VICLIP_FILE.network, package="vbench")

    @torch.no_grad()
    def embed_video(self, frames: Tensor) -> Tensor:
        """Return a vector ``[D]`` of uint8 frames ``[8, 3, 224, 224]``."""
        pixels = preprocess.normalize(frames.float(), preprocess.CLIP)
        return self.model.encode_vision(pixels[None], test=True)[0].float()

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """Return a vector ``[D]`` of a text."""
        return self.model.encode_text(text)[0].float()
