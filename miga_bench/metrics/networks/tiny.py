"""The embedded encoder: a small convolutional network trained on the embedded world, no download.

``miga_bench.backbones.tiny.encoder`` trains it. It knows that world only; on other videos its
numbers order changes of color and pattern, and are worth no more than that.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.base import FrameEncoder, Provenance

SIDE = 64
WEIGHTS = Path(__file__).parent / "weights" / "tiny_encoder.safetensors"


class TinyNet(nn.Module):
    """Frames [N, 3, H, W] in [0, 1] to features [N, 128], centered on the embedded world.

    Where things are is lost in the pooling, so a subject may move; what and how large they are is
    not. Edges wrap, as the embedded world's do. The last normalization has no weights: over the
    training's frames every feature has mean 0 and variance 1, so that the cosine of unrelated
    scenes lies near 0 and not, as with features of one sign, near 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 32, 5, 2), _convolution(32, 64, 3, 2))
        self.middle = _convolution(64, 64, 3, 1)
        self.down = _convolution(64, 128, 3, 2)
        self.deep = _convolution(128, 128, 3, 1)
        self.head = nn.Linear(64 + 128 + 128, 128, bias=False)
        self.center = nn.BatchNorm1d(128, affine=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return features that are not of unit length yet."""
        x = self.stem(frames * 2 - 1)
        x = x + self.middle(x)
        y = self.down(x)
        y = y + self.deep(y)
        # the mean tells how much there is of something, the maximum whether it is there at all
        pooled = torch.cat([x.mean((2, 3)), y.mean((2, 3)), y.amax((2, 3))], dim=1)
        return self.center(self.head(pooled))


class TinyEncoder(FrameEncoder):
    """The embedded encoder with its weights.

    Args:
        weights: A safetensors file of ``TinyNet``'s tensors, of any precision.
        batch: Frames that go through the network at once.
    """

    label = "tiny"

    def __init__(self, weights: Path = WEIGHTS, batch: int = 32) -> None:
        from safetensors.torch import load

        super().__init__(batch)
        content = weights.read_bytes()
        self.net = TinyNet()
        self.net.load_state_dict(load(content))  # into float32, whatever is stored
        self.requires_grad_(False)
        self.eval()
        self.provenance = Provenance(
            "TinyNet", weights.name, hashlib.sha256(content).hexdigest(), "float32"
        )

    def train(self, mode: bool = True) -> Self:
        """Stay as trained: a model in training that holds this encoder must not move its averages."""
        return super().train(False)

    def embed(self, frames: Tensor) -> Tensor:
        """Return features ``[N, 128]`` of uint8 frames ``[N, 3, H, W]``, short side made 64."""
        pixels = frames.to(self.net.head.weight.device, torch.float32) / 255
        return self.net(preprocess.short_side(pixels, SIDE, "bilinear"))


@functools.cache
def tiny_encoder() -> TinyEncoder:
    """Return the one embedded encoder that all scores share."""
    return TinyEncoder()


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            kernel // 2,
            bias=False,
            padding_mode="circular",
        ),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
