"""What ONNX Runtime's TensorRT provider keeps from start to start, and how it takes large weights.

Its engines lie in the user's own cache and not in the export's folder: an engine is code, and a folder may come
from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from importlib.metadata import PackageNotFoundError, version

import onnxruntime
import torch

from miga_bench.backbones.embedding_cache import cache_folder
from miga_bench.errors import Notice, UserError
from miga_bench.export.sidecar import Sidecar

PROTOBUF = 1 << 31  # bytes at which a serialized graph ends


def tensorrt_settings(sidecar: Sidecar, device: torch.device) -> dict[str, str]:
    """Return the provider's settings for a graph: caches of its own, and weights left out of protobuf.

    Args:
        sidecar: The graph's.
        device: The GPU, by whose name engines are kept apart.

    Returns:
        Settings by ONNX Runtime's names; without caches, and with a notice, where none can be kept.

    Raises:
        UserError: The weights are more than this ONNX Runtime hands to TensorRT.
    """
    return _weights(sidecar) | _caches(sidecar, device)


def _weights(sidecar: Sidecar) -> dict[str, str]:
    if not sidecar.external_data:
        return {}
    numbers = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if numbers >= (1, 23):
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


def _caches(sidecar: Sidecar, device: torch.device) -> dict[str, str]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "gpu"
    try:
        library = version("tensorrt")
    except PackageNotFoundError:  # the libraries may come without the package
        library = ""
    profile = [[port.min, port.opt, port.max] for port in sidecar.inputs.values()]
    about = [sidecar.identity, profile, gpu, onnxruntime.__version__, library]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    folder = cache_folder().with_name("onnxruntime-tensorrt") / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be written ({error.strerror}): TensorRT builds its engines at every start; set"
            " MIGA_BENCH_CACHE to a folder of yours",
            Notice,
            stacklevel=2,
        )
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
