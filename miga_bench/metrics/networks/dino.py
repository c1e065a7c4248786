"""DINO ViT-B/16, which VBench sees subjects with, and DINOv2 ViT-B/14 of VBench-Long.

Caron et al., ICCV 2021; Oquab et al., TMLR 2024. Both weights and code are Apache-2.0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.base import FrameEncoder
from miga_bench.metrics.networks.vit import from_dino
from miga_bench.metrics.networks.weight_files import WeightFile, Weights, read_weights

DINO_FILE = WeightFile(
    network="DINO ViT-B/16",
    place="dino_model/dino_vitbase16_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    caches=("torch_hub",),
)
DINOV2_FILE = WeightFile(
    network="DINOv2 ViT-B/14",
    place="dino_model/dinov2_vitb14_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    caches=("torch_hub",),
)


class Dino(FrameEncoder):
    """DINO's class token of whole frames, resized to a shorter side of 224.

    Args:
        weights: A state dict in DINO's naming, or a file; None for the published file.
        dtype: What it computes in; bfloat16 is several times faster on CPUs that have it and moves
            scores in the third decimal.
        batch: Frames that go through the network at once.

    Raises:
        UserError: See ``read_weights``.
    """

    file: ClassVar[WeightFile] = DINO_FILE
    short_name: ClassVar[str] = "dino"

    def __init__(
        self, weights: Weights = None, dtype: torch.dtype = torch.float32, batch: int = 8
    ) -> None:
        super().__init__(batch)
        loaded = read_weights(weights, self.file)
        self.model = from_dino(loaded.content, self.file.network).in_precision(dtype)
        self.label = loaded.label(self.short_name, dtype)
        self.provenance = loaded.provenance(self.file.network, dtype)

    def embed(self, frames: Tensor) -> Tensor:
        """Return class tokens ``[N, D]`` of uint8 frames ``[N, 3, H, W]``."""
        pixels = preprocess.short_side(frames, 224, "bilinear")
        return self.model(preprocess.normalize(pixels, preprocess.IMAGENET))


class DinoV2(Dino):
    """DINOv2's class token of the middle 224 x 224 pixels of frames resized to 256.

    Unlike all others here it is resized with antialiasing: VBench-Long leaves that to torchvision,
    whose default it is since 0.17.
    """

    file: ClassVar[WeightFile] = DINOV2_FILE
    short_name: ClassVar[str] = "dinov2"

    def embed(self, frames: Tensor) -> Tensor:
        """Return class tokens ``[N, D]`` of uint8 frames ``[N, 3, H, W]``."""
        pixels = preprocess.short_side(frames, 256, "bicubic", antialias=True)
        pixels = preprocess.center_crop(pixels, 224)
        return self.model(preprocess.normalize(pixels, preprocess.IMAGENET))
