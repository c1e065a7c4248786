"""What ONNX Runtime's TensorRT providers are given: sizes, what is kept from start to start, large weights.

Their engines and kernels lie in the user's own cache and not in the export's folder: they are code, and a
folder may come from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import onnxruntime
import torch
from filelock import FileLock

from miga_bench.errors import Notice, UserError
from miga_bench.export.sidecar import Sidecar
from miga_bench.offline import cache_folder

PROTOBUF = 1 << 31  # bytes at which a serialized graph ends


def runtime_version() -> tuple[int, ...]:
    """Return ONNX Runtime's major and minor version."""
    return tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])


def tensorrt_settings(sidecar: Sidecar, device: torch.device, library: str) -> dict[str, str]:
    """Return the settings of the provider ``tensorrt`` for a graph.

    Args:
        sidecar: The graph's.
        device: The GPU, by whose name engines are kept apart.
        library: Version of TensorRT, by which they are, too; nothing if it is not known.

    Returns:
        Settings by ONNX Runtime's names; without caches, and with a notice, where none can be kept.

    Raises:
        UserError: The weights are more than this ONNX Runtime hands to TensorRT.
    """
    settings = _profile(sidecar, "trt") | _weights(sidecar)
    folder = _folder(sidecar, device, "onnxruntime-tensorrt", library)
    if folder is not None:
        settings |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    return settings


def tensorrt_rtx_settings(sidecar: Sidecar, device: torch.device, library: str) -> dict[str, str]:
    """Return the settings of the provider ``tensorrt-rtx`` for a graph; see ``tensorrt_settings``."""
    settings = _profile(sidecar, "nv")
    folder = _folder(sidecar, device, "onnxruntime-tensorrt-rtx", library)
    return settings if folder is None else settings | {"nv_runtime_cache_path": folder}


@contextmanager
def alone(settings: Mapping[str, str]) -> Iterator[None]:
    """Let one process at a time open a session that may fill its engine cache.

    ONNX Runtime writes engines in place, where another process reads half of one. A file system that takes no
    locks goes without.

    Args:
        settings: See ``tensorrt_settings``.
    """
    folder = settings.get("trt_engine_cache_path")
    with ExitStack() as stack:
        if folder is not None:
            with suppress(OSError, NotImplementedError):
                stack.enter_context(FileLock(f"{folder}.lock"))
        yield


def _profile(sidecar: Sidecar, prefix: str) -> dict[str, str]:
    """Return the sidecar's sizes; one that is free and left out counts as up to 32767."""
    settings = {}
    for key in ("min", "opt", "max"):
        shapes = (
            f"{name}:{'x'.join(str(size) for size in getattr(port, key))}"
            for name, port in sidecar.inputs.items()
        )
        settings[f"{prefix}_profile_{key}_shapes"] = ",".join(shapes)
    return settings


def _weights(sidecar: Sidecar) -> dict[str, str]:
    if not sidecar.external_data:
        return {}
    if runtime_version() >= (1, 23):
        return {"trt_load_user_initializer": "1"}
    files = (sidecar.folder / name for name in sidecar.external_data)
    size = sum(path.stat().st_size for path in files)
    if size >= PROTOBUF:
        raise UserError(
            f"{sidecar.path} has {size / 2**30:.1f} GiB of weights, more than onnxruntime"
            f" {onnxruntime.__version__} hands to TensorRT: install onnxruntime-gpu 1.23 or newer, or use"
            " tensorrt:FOLDER"
        )
    return {}


def _folder(sidecar: Sidecar, device: torch.device, kind: str, library: str) -> str | None:
    """Return where a provider may keep what it makes of a graph; None, and a notice, where it cannot."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "gpu"
    profile = [[port.min, port.opt, port.max] for port in sidecar.inputs.values()]
    about = [sidecar.identity, profile, gpu, onnxruntime.__version__, library]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    folder = cache_folder(kind) / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be written ({error.strerror}): TensorRT builds its engines at every start; set"
            " MIGA_BENCH_CACHE to a folder of yours",
            Notice,
            stacklevel=2,
        )
        return None
    return str(folder)
