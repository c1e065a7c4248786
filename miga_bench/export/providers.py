"""What of ONNX Runtime runs here, and what a user reads where something does not."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

# name -> ONNX Runtime's name, and what to do for it; two packages of one module would overwrite each other
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": (
        "CUDAExecutionProvider",
        "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
    ),
    # it is linked against libnvinfer.so.10, and the package tensorrt brings 11
    "tensorrt": (
        "TensorrtExecutionProvider",
        'pip uninstall onnxruntime, then pip install onnxruntime-gpu "tensorrt-cu13>=10.15,<11"',
    ),
    # NVIDIA's own way, by its page on installing the plugin
    "tensorrt-rtx": (
        "NvTensorRTRTXExecutionProvider",
        'pip uninstall onnxruntime-gpu, then pip install "onnxruntime>=1.24"'
        " onnxruntime-ep-nv-tensorrt-rtx-cu13",
    ),
}
SILENT = 4  # what goes wrong comes as an exception, and is told in one line
# Sessions have a severity of their own, but that a provider's library does not load is written to stderr by the
# default logger, as two warnings and an error in color. There is no way to ask what it was set to before.
onnxruntime.set_default_logger_severity(SILENT)


def gpu_index(device: torch.device) -> int:
    """Return the number of a device; of a GPU without one it is torch's current."""
    if device.index is not None or device.type != "cuda":
        return device.index or 0
    return torch.cuda.current_device()


def built_in(provider: str) -> bool:
    """Tell whether ONNX Runtime was built with a provider, which says nothing of whether it starts."""
    return PROVIDERS[provider][0] in onnxruntime.get_available_providers()


def runs(provider: str, device: int = 0) -> bool:
    """Tell whether sessions really open on a provider; see ``trouble``."""
    return trouble(provider, device) is None


@cache
def trouble(provider: str, device: int = 0) -> str | None:
    """Return what is wrong with a provider and what to do, None if sessions open on it.

    Args:
        provider: A name in ``PROVIDERS`` but ``tensorrt-rtx``, which comes as a plugin.
        device: Which GPU: a session leaves something on the one that it opened on.
    """
    name, install = PROVIDERS[provider]
    if not built_in(provider):
        return f"onnxruntime {onnxruntime.__version__} has no {name}: {install}"
    ports = [onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1]) for x in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", ports[:1], ports[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=[name if provider == "cpu" else (name, {"device_id": str(device)})],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's own kinds have no base but this
        return does_not_start(provider, " ".join(str(error).split())[:200])
    return None if session.get_providers()[0] == name else does_not_start(provider)


def does_not_start(provider: str, reason: str = "") -> str:
    """Return what to read of a provider that is built in and does not start.

    Args:
        provider: A name in ``PROVIDERS``.
        reason: ONNX Runtime's, where it gave one; of a library that does not load it only writes a log.
    """
    name, install = PROVIDERS[provider]
    if provider == "cpu":
        return f"onnxruntime {onnxruntime.__version__} does not start {name} ({reason}): {install}"
    kind = name.removesuffix("ExecutionProvider")
    made_for: Any = getattr(onnxruntime, "cuda_version", "")
    of = f", made for CUDA {made_for}," if made_for else ""
    torchs = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return (
        f"onnxruntime-gpu {onnxruntime.__version__}{of} is installed, but its {kind} provider does not start"
        f" ({reason or _load_error(kind)}); torch here is {torchs}: take both for one CUDA, and a driver that"
        " is new enough for it"
    )


def _load_error(kind: str) -> str:
    """Return why the library of a provider does not load, by loading it."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    for library in sorted(folder.glob(f"*onnxruntime_providers_{kind.lower()}.*")):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return " ".join(str(error).split())
    return "it gave no reason"
