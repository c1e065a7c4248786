"""How many windows one denoiser call may hold, how long a clip, and how many frames a decoder's call."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import torch

from miga_bench.backbones.base import HEADROOM, Backbone
from miga_bench.errors import Notice

CPU_WINDOWS = 8
MOST_WINDOWS = 64
# Of an image decoder: four frames of 320x512, whose decoding in float32 takes about 2 GiB.
PIXELS_AT_ONCE = 4 * 320 * 512


def window_bytes(tokens: int, width: int, feed_forward: int, element: int) -> int:
    """Estimate the peak memory of one window's row in a transformer block, without its weights.

    The feed-forward layer holds the most at once: its input and result in the network's type, the
    wide hidden layer before and after the activation, and three float32 copies of the tokens
    (residual, normalized, modulated). Attention is computed in tiles and needs less.

    Args:
        tokens: Tokens of a window.
        width: Model width.
        feed_forward: Width of the hidden layer.
        element: Bytes of one number in the network's type.
    """
    return tokens * (width * (3 * 4 + 3 * element) + 2 * feed_forward * element)


def attention_bytes(tokens: int, width: int, element: int, copies: float) -> int:
    """Estimate the memory of one row in self-attention that a method has taken over.

    Residual in float32, normalized input, query, key, value and output in the network's type, and
    what the method holds besides. Attention itself is computed in tiles.

    Args:
        tokens: Tokens of the clip.
        width: Model width.
        element: Bytes of one number in the network's type.
        copies: The method's own tensors of an output's shape, in float32.
    """
    return int(tokens * width * (4 + 5 * element + 4 * copies))


MEMORY = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device, counting what torch holds but does not use.

    On a CPU: what the system says is available, or less where a control group allows less; None where
    that cannot be read.
    """
    if device.type == "mps":  # shared with the system, which says how much of it is a GPU's to use
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = []
    try:
        lines = MEMORY.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        group = CONTROL_GROUP
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # files that were read or written stay in memory only as long as nobody wants it
        idle = sum(int(counts.get(name, 0)) for name in ("inactive_file", "slab_reclaimable"))
        found.append(max(0, limit - used + idle))
    except (OSError, ValueError):  # not Linux, or a group without a limit, which says "max"
        pass
    return min(found) if found else _available()


def _available() -> int | None:
    """Return what a system without ``/proc/meminfo`` says is available, as macOS does."""
    import psutil  # type: ignore[import-untyped]

    with suppress(OSError, RuntimeError):
        return int(psutil.virtual_memory().available)
    return None


def default_batch(backbone: Backbone) -> int:
    """Return how many windows fit one denoiser call, with guidance (two rows each).

    80 % of the memory that is free now, on a GPU counting what torch holds but does not use, divided by
    ``clip_bytes`` of a window: 1 to 64, on a CPU at most 8, beyond which tiny models gain nothing.
    """
    most = MOST_WINDOWS if torch.device(backbone.device).type == "cuda" else CPU_WINDOWS
    free, row = backbone.free_bytes(), backbone.clip_bytes(backbone.window)
    if free is None:  # not known: nothing but the user's own batch is a better guess
        return CPU_WINDOWS
    return max(1, min(most, int(HEADROOM * free / (2 * (row or 1)))))


def give_back() -> None:
    """Give back what torch holds of GPUs' memory and does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def tell_crowded(device: torch.device) -> None:
    """Say that texts are encoded in main memory, and give back what the device still holds of the encoder."""
    give_back()
    warnings.warn(
        f"out of memory on {device} for the text encoder: it runs on the CPU, which takes longer",
        Notice,
        stacklevel=2,
    )
