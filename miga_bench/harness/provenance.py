"""How a file was made: versions, hardware, memory, and the commit."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from miga_bench.errors import Notice
from miga_bench.harness.machine import cpu_name

EXPORTED = ("onnx", "tensorrt")  # how identities of denoisers that are not torch's begin
PACKAGES = ("miga-bench", "torch", "diffusers", "transformers", "numpy", "av")
RESET = Path("/proc/self/clear_refs")
_stale = False  # whether the peak is from before it was to be forgotten


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a video."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware(device: str) -> dict[str, object]:
    """Return what the numbers were measured on."""
    facts: dict[str, object] = {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def forget_peak_memory(device: str) -> None:
    """Let the peaks begin anew, where the system can: a video's peak is not that of the one before."""
    global _stale
    try:
        RESET.write_text("5", encoding="ascii")
        _stale = False
    except OSError:  # outside Linux
        _stale = True
    if device.startswith("cuda") and torch.cuda.is_initialized():  # until then nothing has a peak
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: str, denoiser: str = "torch") -> dict[str, float]:
    """Return the process's peak memory since it was last forgotten, and the GPU's where it is known.

    The process's is left out where it was to be forgotten and could not be: it may be an earlier video's.

    Args:
        device: Where the denoiser runs.
        denoiser: ``Backbone.denoiser_identity``. What an exported one takes of a GPU, weights among it, is not
            torch's, and torch's own count would be gigabytes too low: it is left out, and a line says so.
    """
    peaks: dict[str, float] = {}
    kib = None if _stale else _resident_peak_kib()
    if kib is not None:
        peaks["process"] = round(kib / 2**10, 1)
    if not device.startswith("cuda"):
        return peaks
    if denoiser.startswith(EXPORTED):
        _tell_untold(device)
    else:
        peaks["gpu"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peaks


@functools.cache  # once is enough for a process
def _tell_untold(device: str) -> None:
    warnings.warn(
        f"the peak memory of {device} is not recorded: PyTorch, which counts it, does not see what ONNX Runtime"
        " and TensorRT take; nvidia-smi does",
        Notice,
        stacklevel=3,
    )


def memory_kib(field: str, process: int | str = "self") -> int | None:
    """Return what a process holds, in KiB; None where the system does not say, or the process is gone.

    Args:
        field: ``VmRSS`` is what it holds now, ``VmHWM`` the most since that was last forgotten.
        process: Its number; by default this one.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return None


def _resident_peak_kib() -> float | None:
    kib = memory_kib("VmHWM")
    if kib is not None:
        return kib
    with suppress(ImportError):  # not on Windows
        import resource

        unit = 2**10 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return None


@functools.cache
def git_state() -> Mapping[str, object] | None:
    """Return the commit of the package's checkout, and whether it was changed; None if it is none.

    It is asked for once: what a process runs is what it has imported.
    """
    folder = Path(__file__).parent
    if not (folder.parents[1] / ".git").exists():
        return None  # an installed package may lie in somebody else's repository
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": head, "changed": bool(changes)}
