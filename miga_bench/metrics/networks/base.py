"""What a score asks of a network: pictures in, numbers out, and a label that says whose they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miga_bench.errors import NumericalError, UserError


@dataclass(frozen=True)
class Provenance:
    """Where a network's numbers come from.

    Attributes:
        network: Its name, such as ``DINO ViT-B/16``.
        weights: The file's name, or how the weights came about.
        sha256: Of the weight file or of all tensors; None where there are no weights.
        precision: What it computes in, such as ``float32``.
    """

    network: str
    weights: str
    sha256: str | None
    precision: str = "float32"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "network": self.network,
            "weights": self.weights,
            "sha256": self.sha256,
            "precision": self.precision,
        }


class Network(ABC):
    """A network behind a score.

    Attributes:
        label: None for the network that the published score is made with. Any other network names
            itself here, and scores made with it carry the name: ``subject_consistency[tiny]``.
        provenance: Where its numbers come from.
        least_side: Frames that it can judge have so many pixels on both sides.
    """

    label: str | None
    provenance: Provenance
    least_side: int = 1


class FrameEncoder(nn.Module, Network):
    """Turns frames into one feature vector each, which consistency is measured on.

    Several scores may share one encoder: features of the frames it saw last are kept, so a
    collection of scores pays for one pass.

    Args:
        batch: Frames that go through the network at once.
    """

    def __init__(self, batch: int = 32) -> None:
        super().__init__()
        self.batch = batch
        self._last: tuple[tuple[Any, ...] | None, Tensor, Tensor] | None = None

    @abstractmethod
    def embed(self, frames: Tensor) -> Tensor:
        """Return features ``[N, D]`` of uint8 frames ``[N, 3, H, W]``, preprocessing included."""

    def forward(self, frames: Tensor) -> Tensor:
        """Return float32 features ``[N, D]``, of unit length, of uint8 frames ``[N, 3, H, W]``."""
        key = _identity(frames)
        if key is None or self._last is None or self._last[0] != key:
            with torch.no_grad():
                parts = [self.embed(part).float() for part in frames.split(self.batch)]
            features = nn.functional.normalize(torch.cat(parts), dim=-1)
            # the frames are kept with their features: their memory cannot become other frames
            self._last = (key, frames, features)
        return self._last[2]

    def forget(self) -> None:
        """Let the frames that were seen last go."""
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without the frames seen last."""
        return {**self.__dict__, "_last": None}


class Interpolator(nn.Module, Network):
    """Predicts the frame halfway between two, which smoothness is measured against."""

    @abstractmethod
    def midpoint(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the uint8 frames ``[N, 3, H, W]`` halfway between two batches of uint8 frames."""


class FlowEstimator(nn.Module, Network):
    """Estimates how far every pixel moves between two frames."""

    @abstractmethod
    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Return displacements in pixels ``[N, 2, H, W]`` between two batches of uint8 frames."""


def check_frames(frames: Tensor, score: str) -> None:
    """Check that ``frames`` is a piece of a video.

    Raises:
        UserError: It is not uint8 ``[T, 3, H, W]``.
    """
    if not isinstance(frames, Tensor):
        raise UserError(f"{score}: a video must be a tensor, not {type(frames).__name__}")
    if frames.dtype != torch.uint8:
        raise UserError(
            f"{score}: frames are {str(frames.dtype).removeprefix('torch.')}, they must be uint8 "
            "in 0..255; from floats in [0, 1]: (video * 255).round().to(torch.uint8)"
        )
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise UserError(
            f"{score}: frames have the shape {list(frames.shape)}, it must be [T, 3, height, width]"
        )


def check_finite(values: Tensor) -> Tensor:
    """Return what a network gave ``[..., H, W]``, before NaN is cast to black or taken for no motion.

    Raises:
        NumericalError: A value is NaN or infinity.
    """
    if not values.isfinite().all():
        height, width = values.shape[-2:]
        raise NumericalError(
            f"a network returned NaN or infinity for frames of {width}x{height} pixels: compute it on another "
            "device, or fetch its weights anew"
        )
    return values


def plain(provenances: Mapping[str, Provenance]) -> dict[str, dict[str, Any]]:
    """Return several networks' provenances as plain values."""
    return {role: provenance.as_dict() for role, provenance in provenances.items()}


def _identity(frames: Tensor) -> tuple[Any, ...] | None:
    """Return what changes with the frames; None for inference tensors, which do not count their changes."""
    if frames.is_inference():
        return None
    place = (frames.data_ptr(), frames.device, frames.dtype)
    return (*place, tuple(frames.shape), frames.stride(), frames._version)
