"""CLIP's vision towers: ViT-B/32 sees VBench's backgrounds, ViT-L/14 its aesthetics.

Radford et al., ICML 2021; weights and code are MIT.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.base import FrameEncoder
from miga_bench.metrics.networks.vit import from_clip
from miga_bench.metrics.networks.weight_files import WeightFile, Weights, read_weights

_PUBLISHED = "https://openaipublic.azureedge.net/clip/models"
_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
# OpenAI's addresses state the SHA-256, and clip checks it
B32_FILE = WeightFile(
    network="CLIP ViT-B/32",
    place="clip_model/ViT-B-32.pt",
    url=f"{_PUBLISHED}/{_B32}/ViT-B-32.pt",
    sha256=_B32,
    caches=("clip",),
)
L14_FILE = WeightFile(
    network="CLIP ViT-L/14",
    place="clip_model/ViT-L-14.pt",
    url=f"{_PUBLISHED}/{_L14}/ViT-L-14.pt",
    sha256=_L14,
    caches=("clip",),
)


class Clip(FrameEncoder):
    """CLIP's image embedding of the middle square of frames, ViT-B/32.

    Args:
        weights: A state dict in OpenAI's naming, or a file; None for the published file.
        dtype: What embeddings are computed in. On a GPU the original computes them in float16, and
            their cosines, too, which near 1 come in steps of 0.0005; published numbers carry that.
            Cosines are float32 here, whatever the embeddings are.
        batch: Frames that go through the network at once.

    Raises:
        UserError: See ``read_weights``.
    """

    file: ClassVar[WeightFile] = B32_FILE
    short_name: ClassVar[str] = "clip"

    def __init__(
        self, weights: Weights = None, dtype: torch.dtype = torch.float32, batch: int = 32
    ) -> None:
        super().__init__(batch)
        loaded = read_weights(weights, self.file)
        self.model = from_clip(loaded.content, self.file.network).in_precision(dtype)
        self.label = loaded.label(self.short_name, dtype)
        self.provenance = loaded.provenance(self.file.network, dtype)

    def embed(self, frames: Tensor) -> Tensor:
        """Return embeddings ``[N, D]`` of uint8 frames ``[N, 3, H, W]``."""
        return self.model(preprocess.clip_pixels(frames))


class ClipL14(Clip):
    """The same with ViT-L/14."""

    file: ClassVar[WeightFile] = L14_FILE
    short_name: ClassVar[str] = "clip-l14"
