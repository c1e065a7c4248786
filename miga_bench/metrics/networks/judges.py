"""Networks that give every frame a mark: LAION's aesthetic head on CLIP, and MUSIQ.

Aesthetics: https://github.com/LAION-AI/aesthetic-predictor, a linear layer on CLIP ViT-L/14.
MUSIQ: Ke et al., ICCV 2021, from the installed ``pyiqa`` package, whose license (PolyForm) allows
non-commercial use only.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod

import torch
from torch import Tensor, nn

from miga_bench.errors import UserError
from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.base import Network
from miga_bench.metrics.networks.clip import Clip, ClipL14
from miga_bench.metrics.networks.weight_files import WeightFile, Weights, fill, read_weights

AESTHETIC_FILE = WeightFile(
    network="LAION's aesthetic head",
    place="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    url="https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
)
MUSIQ_FILE = WeightFile(
    network="MUSIQ",
    place="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    url="https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/"
    "musiq_spaq_ckpt-358bb6af.pth",
    sha256="358bb6af",  # of torch.hub's custom: the name ends with the beginning of the hash
)
_LONGEST = 512


class FrameJudge(nn.Module, Network):
    """Gives frames marks."""

    @abstractmethod
    def marks(self, frames: Tensor) -> Tensor:
        """Return marks ``[N]``, about 0..1, of uint8 frames ``[N, 3, H, W]``."""


class Aesthetic(FrameJudge):
    """LAION's aesthetic head; a tenth of its marks.

    Args:
        encoder: Whose embeddings the head reads; None is CLIP ViT-L/14.
        weights: The head's state dict, or a file; None for the published file.

    Raises:
        UserError: See ``read_weights``.
    """

    def __init__(self, encoder: Clip | None = None, weights: Weights = None) -> None:
        super().__init__()
        self.encoder = encoder or ClipL14()
        loaded = read_weights(weights, AESTHETIC_FILE)
        self.head = nn.Linear(loaded.content["weight"].shape[-1], 1)
        fill(self.head, loaded.content, AESTHETIC_FILE.network)
        self.label = loaded.label("aesthetic") or self.encoder.label
        own, tower = loaded.provenance(AESTHETIC_FILE.network), self.encoder.provenance
        self.provenance = type(own)(
            f"{own.network} on {tower.network}",
            f"{own.weights} on {tower.weights}",
            f"{own.sha256} on {tower.sha256}",
            tower.precision,
        )

    def marks(self, frames: Tensor) -> Tensor:
        """Return marks ``[N]`` of uint8 frames ``[N, 3, H, W]``."""
        with torch.no_grad():
            return self.head(self.encoder(frames)).squeeze(-1) / 10


class Musiq(FrameJudge):
    """MUSIQ trained on SPAQ; a hundredth of its marks.

    Frames whose longer side exceeds 512 are made smaller, VBench's default.

    Args:
        weights: A state dict, or a file; None for the published file.

    Raises:
        UserError: ``pyiqa`` is not installed; or see ``read_weights``.
    """

    def __init__(self, weights: Weights = None) -> None:
        super().__init__()
        try:
            found = importlib.import_module("pyiqa.archs.musiq_arch")
        except ImportError as error:
            raise UserError(
                f"MUSIQ is in the package pyiqa, which is missing ({error}): pip install pyiqa"
            ) from error
        loaded = read_weights(weights, MUSIQ_FILE)
        self.model = found.MUSIQ(pretrained=False)
        content = loaded.content.get("params", loaded.content)
        fill(self.model, content, MUSIQ_FILE.network)
        self.label = loaded.label("musiq")
        self.provenance = loaded.provenance(MUSIQ_FILE.network, package="pyiqa")

    @torch.no_grad()
    def marks(self, frames: Tensor) -> Tensor:
        """Return marks ``[N]`` of uint8 frames ``[N, 3, H, W]``, one frame at a time."""
        height, width = frames.shape[-2:]
        shape = (height, width)
        if max(shape) > _LONGEST:
            scale = _LONGEST / max(shape)
            shape = int(scale * height), int(scale * width)
        marks = [
            self.model(preprocess.resize(frame, shape, "bilinear") / 255.0).reshape(1)
            for frame in frames.split(1)
        ]
        return torch.cat(marks) / 100
