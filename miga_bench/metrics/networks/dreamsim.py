"""DreamSim, which VBench-Long compares the backgrounds of clips with.

Fu et al., NeurIPS 2023; code and weights are MIT. The package loads its own weights.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from miga_bench.errors import UserError
from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.base import FrameEncoder, Provenance
from miga_bench.metrics.networks.weight_files import tensors_sha256, with_version
from miga_bench.offline import downloads_off

SIDE = 224
# what the package looks for before it fetches, and what DINO's code looks for below it
FILES = (
    "dino_vitb16_pretrain.pth",
    "clip_vitb16_pretrain.pth.tar",
    "open_clip_vitb16_pretrain.pth.tar",
    "ensemble_lora",
    "facebookresearch_dino_main",
    "checkpoints/dino_vitbase16_pretrain.pth",
)


class DreamSim(FrameEncoder):
    """DreamSim's ensemble of three transformers, as the installed ``dreamsim`` package has it.

    Frames are made 224x224, bicubic, whatever their shape, as VBench-Long does.

    Args:
        batch: Frames that go through the network at once.
        device: Where it runs. The package remembers it, so it stays there.

    Raises:
        UserError: The package or its weights are missing.
    """

    label = None

    def __init__(self, batch: int = 8, device: str = "cpu") -> None:
        super().__init__(batch)
        try:
            from dreamsim import dreamsim  # type: ignore[import-not-found]
        except ImportError:
            raise UserError(
                "VBench-Long's clip-to-clip score of backgrounds needs DreamSim: pip install"
                " 'dreamsim>=0.2', or leave that score out by --in-clip-only"
            ) from None
        cache = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
        folder = cache.expanduser() / "dreamsim"
        try:
            with _fetching(folder):
                self.model, _ = dreamsim(pretrained=True, device=device, cache_dir=str(folder))
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"DreamSim's weights cannot be fetched to {folder} ({error}): try again, or leave that score"
                " out by --in-clip-only"
            ) from error
        self.provenance = Provenance(
            "DreamSim ensemble",
            f"of the package {with_version('dreamsim')}",
            tensors_sha256(self.model.state_dict()),
        )

    def embed(self, frames: Tensor) -> Tensor:
        """Return features ``[N, D]`` of uint8 frames ``[N, 3, H, W]``."""
        device = next(self.model.parameters()).device
        # not clamped: the original keeps what bicubic interpolation overshoots
        pixels = preprocess.resize(frames.to(device), (SIDE, SIDE), "bicubic", antialias=True)
        features: Tensor = self.model.embed(pixels / 255)
        return features


@contextmanager
def _fetching(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch what is missing; the package itself would mix their downloads.

    Raises:
        UserError: Something is missing, and downloads are off.
    """
    missing = next((name for name in FILES if not (folder / name).exists()), None)
    if missing is None:
        yield
        return
    switch = downloads_off()
    if switch:
        raise UserError(
            f"DreamSim's weights are not in {folder} ({missing} is missing), and downloads are off"
            f" ({switch}): put them there, or leave that score out by --in-clip-only"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "wb") as lock:
        with suppress(ImportError):  # not on Windows
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
