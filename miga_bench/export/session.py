"""Graphs at work in ONNX Runtime: torch tensors in and out, nothing copied that need not be."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from miga_bench.errors import UserError
from miga_bench.export.provider_cache import (
    alone,
    runtime_version,
    tensorrt_rtx_settings,
    tensorrt_settings,
)
from miga_bench.export.sidecar import Sidecar

# name -> ONNX Runtime's name, and what to install for it
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    # it is linked against libnvinfer.so.10, and the package tensorrt brings 11
    "tensorrt": ("TensorrtExecutionProvider", 'onnxruntime-gpu "tensorrt-cu13>=10.15,<11"'),
    "tensorrt-rtx": (
        "NvTensorRTRTXExecutionProvider",
        "onnxruntime-gpu onnxruntime-ep-nv-tensorrt-rtx-cu13",
    ),
}
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_ATTENTION_FROM = (1, 25)  # microsoft/onnxruntime, issue 28025 and pull request 27542
_SILENT = 4  # what goes wrong comes as an exception, and is told in one line
onnxruntime.set_default_logger_severity(_SILENT)


@cache
def runs(provider: str, device: int = 0) -> bool:
    """Tell whether sessions really open on a provider; ONNX Runtime lists what it was built with.

    Args:
        provider: A name in ``PROVIDERS`` but ``tensorrt-rtx``, which comes as a plugin.
        device: Which GPU: a session leaves something on the one that it opened on.
    """
    name, _ = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        return False
    ports = [onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1]) for x in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", ports[:1], ports[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=[name if provider == "cpu" else (name, {"device_id": str(device)})],
            enable_fallback=0,
        )
    except Exception:  # ONNX Runtime's own kinds have no base but this
        return False
    return bool(session.get_providers()[0] == name)


class Session:
    """One graph, loaded once, called any number of times.

    Args:
        sidecar: The graph's.
        device: Where tensors come from and go to, as torch names it.
        provider: A name in ``PROVIDERS``; None is the device's own.
        check: Whether files are held against their hashes first.

    Raises:
        UserError: Files are missing or damaged, the provider is not installed, or the graph is none.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        device: str | torch.device = "cpu",
        provider: str | None = None,
        check: bool = True,
    ) -> None:
        if check:
            sidecar.check()
        self.sidecar, self.device = sidecar, torch.device(device)
        self.provider = provider or ("cuda" if self.device.type == "cuda" else "cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        try:
            self._session = self._open(options)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's own kinds have no base but this
            raise self._failure(" ".join(str(error).split())[:200]) from None
        name, _ = PROVIDERS[self.provider]
        running = self._session.get_providers()[0]
        if running != name:  # it goes on with the next provider where one does not start
            raise UserError(
                f"ONNX Runtime could not start {name}, only {running}{self._found()}: {self._install()}; GPU,"
                " driver and CUDA have to be what it was made for"
            )

    def _open(self, options: Any) -> Any:
        name, _ = PROVIDERS[self.provider]
        path = str(self.sidecar.path)
        # weights that the graph casts stay as small as they are stored, and are cast when it is their turn
        left_out = ["ConstantFolding"] if self.sidecar.stored else None
        more: dict[str, Any] = {"disabled_optimizers": left_out, "enable_fallback": 0}
        if self.provider == "tensorrt-rtx":
            self._add_plugin(options, name)
            return onnxruntime.InferenceSession(path, options, **more)
        if name not in onnxruntime.get_available_providers():
            raise self._not_installed()
        chain: list[Any] = ["CPUExecutionProvider"]
        settings: dict[str, str] = {}
        if self.provider != "cpu":
            self._check_attention()
            device = {"device_id": str(self.device.index or 0)}
            # fp32 is to mean fp32; who wants speed exports fp16
            exact = {"use_tf32": "0"} if self.sidecar.precision == "fp32" else {}
            chain.insert(0, ("CUDAExecutionProvider", device | exact))
            if self.provider == "tensorrt":
                settings = device | tensorrt_settings(self.sidecar, self.device, _tensorrt())
                chain.insert(0, (name, settings))
        with alone(settings):
            return onnxruntime.InferenceSession(path, options, providers=chain, **more)

    def _check_attention(self) -> None:
        """Refuse a graph of which a GPU's provider would leave the most work to the CPU, in silence."""
        if self.sidecar.operators.get("Attention") and runtime_version() < _ATTENTION_FROM:
            raise UserError(
                f"{self.sidecar.path} has Attention, which onnxruntime {onnxruntime.__version__} computes on"
                " the CPU whatever the provider: install onnxruntime-gpu 1.25 or newer, or export with"
                " --opset 20"
            )

    def _failure(self, reason: str) -> UserError:
        """Return what a user reads of a graph that ONNX Runtime refused."""
        path, (name, _) = self.sidecar.path, PROVIDERS[self.provider]
        if "NOT_IMPLEMENTED" in reason:
            return UserError(
                f"{path} is in {self.sidecar.precision}, of which {name} lacks an operator ({reason}): bf16 is"
                " for tensorrt:FOLDER; export in fp16 for onnx+cuda, in fp32 for a CPU"
            )
        if self.provider != "cpu":
            return UserError(
                f"{path} cannot be opened on {name} ({reason}){self._found()}: look at GPU, driver and free"
                f" memory, or use another provider ({self._others()})"
            )
        return UserError(f"{path} cannot be loaded by ONNX Runtime ({reason}): export it again")

    def _found(self) -> str:
        """Return which TensorRT is there, where the provider needs one of version 10."""
        if self.provider != "tensorrt":
            return ""
        found = _tensorrt()
        return f" (it needs TensorRT 10, here is {found or 'none that Python imports'})"

    def _add_plugin(self, options: Any, name: str) -> None:
        try:
            plugin = importlib.import_module(_RTX_PLUGIN)
        except ImportError:
            raise self._not_installed() from None
        if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name]
        if not devices:
            raise UserError(
                "the provider tensorrt-rtx sees no GPU that it can use: use cpu or cuda"
            )
        library = str(getattr(plugin, "__version__", ""))
        settings = tensorrt_rtx_settings(self.sidecar, self.device, library)
        options.add_provider_for_devices([devices[self.device.index or 0]], settings)

    def _not_installed(self) -> UserError:
        return UserError(
            f"ONNX Runtime here has no {PROVIDERS[self.provider][0]}: {self._install()}"
        )

    def _install(self) -> str:
        """Return what to do for the provider; two packages of one module would overwrite each other."""
        return (
            f"pip uninstall onnxruntime, then pip install {PROVIDERS[self.provider][1]}, or use another"
            f" provider ({self._others()})"
        )

    def _others(self) -> str:
        return ", ".join(provider for provider in PROVIDERS if provider != self.provider)

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: By name; tensors of the graph's types on the session's device are not copied.
            outputs: Where results go, by name; those that are left out are new tensors.

        Returns:
            All outputs by name.

        Raises:
            UserError: An input's shape is none that the graph takes.
        """
        sizes = self._sizes(inputs)
        binding = self._session.io_binding()
        held = []  # tensors that must outlive the call
        for name, port in self.sidecar.inputs.items():
            tensor = inputs[name].to(self.device, getattr(torch, port.dtype)).contiguous()
            held.append(tensor)
            self._bind(binding.bind_input, name, tensor)
        made: dict[str, Tensor] = {}
        for name, port in self.sidecar.outputs.items():
            kind = getattr(torch, port.dtype)
            given = (outputs or {}).get(name)
            made[name] = (
                torch.empty(port.at(**sizes), dtype=kind, device=self.device)
                if given is None
                else given
            )
            self._bind(binding.bind_output, name, made[name])
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        if self.device.type == "cuda":
            binding.synchronize_outputs()
        return made

    def _bind(self, bind: Any, name: str, tensor: Tensor) -> None:
        kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
        bind(
            name,
            self.device.type,
            self.device.index or 0,
            kind,
            list(tensor.shape),
            tensor.data_ptr(),
        )

    def _sizes(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the sizes of the free dimensions, all shapes checked."""
        sizes: dict[str, int] = {}
        for name, port in self.sidecar.inputs.items():
            given = inputs[name].shape
            for wanted, size in zip(port.shape, given, strict=False):
                if isinstance(wanted, str) and wanted.isidentifier():
                    sizes.setdefault(wanted, size)
            if len(given) != len(port.shape) or port.at(**sizes) != list(given):
                raise UserError(
                    f"{self.sidecar.path.name} takes {name} of {_as_text(port.shape)}, not"
                    f" {_as_text(given)}: export it for that size, or change the video's"
                )
        return sizes


def _tensorrt() -> str:
    """Import TensorRT, whose libraries lie where the provider would not find them; return its version."""
    try:
        return str(importlib.import_module("tensorrt").__version__)
    except (ImportError, OSError):
        return ""


def _as_text(shape: Any) -> str:
    return "x".join(str(size) for size in shape)
