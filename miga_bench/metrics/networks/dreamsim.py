"""DreamSim, which VBench-Long compares the backgrounds of clips with.

Fu et al., NeurIPS 2023; code and weights are MIT. The package loads its own weights.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from miga_bench.errors import UserError
from miga_bench.metrics.networks.base import FrameEncoder, Provenance

SIDE = 224


class DreamSim(FrameEncoder):
    """DreamSim's ensemble of three transformers, as the installed ``dreamsim`` package has it.

    Frames are made 224x224, bicubic, whatever their shape, as its own preprocessing does.

    Args:
        batch: Frames that go through the network at once.

    Raises:
        UserError: The package is not installed.
    """

    label = None

    def __init__(self, batch: int = 8) -> None:
        super().__init__(batch)
        try:
            from dreamsim import dreamsim  # type: ignore[import-not-found]
        except ImportError:
            raise UserError(
                "VBench-Long's clip-to-clip score of backgrounds needs DreamSim: pip install dreamsim, or "
                "leave that score out by --in-clip-only"
            ) from None
        cache = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
        self.model, _ = dreamsim(pretrained=True, device="cpu", cache_dir=str(cache / "dreamsim"))
        self.provenance = Provenance("DreamSim ensemble", "of the dreamsim package", None)

    def embed(self, frames: Tensor) -> Tensor:
        """Return features ``[N, D]`` of uint8 frames ``[N, 3, H, W]``."""
        device = next(self.model.parameters()).device
        pixels = frames.to(device, torch.float32) / 255
        resized = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", antialias=True)
        features: Tensor = self.model.embed(resized.clamp(0, 1))
        return features
