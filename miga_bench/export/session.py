"""Graphs at work in ONNX Runtime: torch tensors in and out, nothing copied that need not be."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from miga_bench.errors import UserError, is_out_of_memory
from miga_bench.export.attention import opset_20_would_do
from miga_bench.export.provider_cache import (
    alone,
    runtime_version,
    tensorrt_rtx_settings,
    tensorrt_settings,
)
from miga_bench.export.providers import PROVIDERS, SILENT, built_in, does_not_start, gpu_index
from miga_bench.export.sidecar import Sidecar

_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_ATTENTION_FROM = (1, 25)  # microsoft/onnxruntime, issue 28025 and pull request 27542
# What TensorRT says of an Attention that it has no kernel for; ONNX Runtime tells only that no engine was made.
_NO_KERNEL = ("dedicated kernel", "decomposable")
_NO_ENGINE = "failed to create engine"


class OutOfMemoryError(UserError):
    """Memory ran out while a graph was opened; ``is_out_of_memory`` knows it by this name."""


class Session:
    """One graph, loaded once, called any number of times.

    Args:
        sidecar: The graph's.
        device: Where tensors come from and go to, as torch names it.
        provider: A name in ``PROVIDERS``; None is the device's own.
        check: Whether files are held against their hashes first.

    Raises:
        UserError: Files are missing or damaged, the provider is not installed, or the graph is none.
        OutOfMemoryError: The same, for want of memory.
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
        place = torch.device(device)
        # once: another GPU may be torch's current one when the graph is called
        self.index = gpu_index(place)
        self.device = torch.device("cuda", self.index) if place.type == "cuda" else place
        self.sidecar = sidecar
        self.provider = provider or ("cuda" if self.device.type == "cuda" else "cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        try:
            self._session = self._open(options)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's own kinds have no base but this
            raise self._failure(error) from None
        name, _ = PROVIDERS[self.provider]
        running = self._session.get_providers()[0]
        if running != name:  # it goes on with the next provider where one does not start
            # of TensorRT it lacks the version that it was linked against more often than anything else
            remedy = does_not_start("cuda") if self.provider == "cuda" else self._install()
            raise UserError(
                f"ONNX Runtime could not start {name}, only {running}{self._found()}: {remedy}; or use another"
                f" provider ({self._others()})"
            )

    def _open(self, options: Any) -> Any:
        name, _ = PROVIDERS[self.provider]
        path = str(self.sidecar.path)
        # weights that the graph casts stay as small as they are stored, and are cast when it is their turn
        left_out = ["ConstantFolding"] if self.sidecar.stored else None
        more: dict[str, Any] = {"disabled_optimizers": left_out, "enable_fallback": 0}
        self._check_attention()
        if self.provider == "tensorrt-rtx":
            self._add_plugin(options, name)
            return onnxruntime.InferenceSession(path, options, **more)
        if not built_in(self.provider):
            raise self._not_installed()
        chain: list[Any] = ["CPUExecutionProvider"]
        settings: dict[str, str] = {}
        if self.provider != "cpu":
            device = {"device_id": str(self.index)}
            # fp32 is to mean fp32; who wants speed exports fp16
            tf32 = {"use_tf32": "0"} if self.sidecar.precision == "fp32" else {}
            # by default memory grows to the next power of two, beside which torch needs its own
            arena = {"arena_extend_strategy": "kSameAsRequested"}
            chain.insert(0, ("CUDAExecutionProvider", device | arena | tf32))
            if self.provider == "tensorrt":
                settings = device | tensorrt_settings(self.sidecar, self.device, _tensorrt())
                chain.insert(0, (name, settings))
        with alone(settings):
            return onnxruntime.InferenceSession(path, options, providers=chain, **more)

    def _check_attention(self) -> None:
        """Refuse attention that a provider cannot do, or would leave to the CPU in silence."""
        if self.provider == "cpu" or not self.sidecar.operators.get("Attention"):
            return
        if self.provider.startswith("tensorrt") and self.sidecar.precision == "fp32":
            raise self._no_kernel()
        if self.provider != "tensorrt-rtx" and runtime_version() < _ATTENTION_FROM:
            older = ", or export with --opset 20" if opset_20_would_do(self.sidecar) else ""
            raise UserError(
                f"{self.sidecar.path} has Attention, which onnxruntime {onnxruntime.__version__} computes on"
                f" the CPU whatever the provider: install onnxruntime-gpu 1.25 or newer{older}"
            )

    def _no_kernel(self, reason: str = "", perhaps: bool = False) -> UserError:
        """Return what a user reads of an Attention that TensorRT cannot do as ONNX Runtime hands it over."""
        sidecar, (name, _) = self.sidecar, PROVIDERS[self.provider]
        ways = ["--precision fp16"] if sidecar.precision == "fp32" else []
        ways += ["--opset 20"] if opset_20_would_do(sidecar) else []
        export = f"export with {' or '.join(ways)}, or use" if ways else "use"
        has = "may be short of memory, or have" if perhaps else "has"
        return UserError(
            f"{sidecar.path} cannot be opened on {name}{reason}: TensorRT {has} no kernel for its Attention in"
            f" {sidecar.precision}, which ONNX Runtime does not let it do in parts; {export} tensorrt:FOLDER,"
            " whose engines do"
        )

    def _failure(self, error: Exception) -> UserError:
        """Return what a user reads of a graph that ONNX Runtime refused."""
        path, (name, _) = self.sidecar.path, PROVIDERS[self.provider]
        whole = " ".join(str(error).split())
        reason = whole[:200]
        if "NOT_IMPLEMENTED" in reason:
            return UserError(
                f"{path} is in {self.sidecar.precision}, of which {name} lacks an operator ({reason}): bf16 is"
                " for tensorrt:FOLDER; export in fp16 for onnx+cuda, in fp32 for a CPU"
            )
        if is_out_of_memory(error):
            return OutOfMemoryError(
                f"{path} cannot be opened on {name}, out of memory on {self.device} ({whole[-100:]}): free some"
                f" there, or use another provider ({self._others()})"
            )
        if self.provider.startswith("tensorrt"):
            surely = any(sign in whole for sign in _NO_KERNEL)
            if surely or (self.sidecar.operators.get("Attention") and _NO_ENGINE in whole):
                return self._no_kernel(f" ({reason})", perhaps=not surely)
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
        options.add_provider_for_devices([devices[self.index]], settings)

    def _not_installed(self) -> UserError:
        name, _ = PROVIDERS[self.provider]
        return UserError(
            f"ONNX Runtime here has no {name}: {self._install()}, or use another provider ({self._others()})"
        )

    def _install(self) -> str:
        return PROVIDERS[self.provider][1]

    def _others(self) -> str:
        return ", ".join(provider for provider in PROVIDERS if provider != self.provider)

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: By name; tensors of the graph's types on the session's device are not copied.
            outputs: Where results go, by name, each as the graph writes it: contiguous, of its shape and type,
                on the session's device; those that are left out are new tensors.

        Returns:
            All outputs by name.

        Raises:
            UserError: An input's shape is none that the graph takes.
            ValueError: A given output is not what the graph writes.
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
            shape, kind = port.at(**sizes), getattr(torch, port.dtype)
            given = (outputs or {}).get(name)
            if given is None:
                given = torch.empty(shape, dtype=kind, device=self.device)
            else:
                self._check_output(name, given, shape, kind)
            made[name] = given
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
            self.index,
            kind,
            list(tensor.shape),
            tensor.data_ptr(),
        )

    def _check_output(self, name: str, given: Tensor, shape: list[int], kind: torch.dtype) -> None:
        """Refuse a tensor that the graph would write beside, since it is told nothing but an address."""
        wanted = (shape, kind, self.device, True)
        found = (list(given.shape), given.dtype, given.device, given.is_contiguous())
        if found != wanted:
            raise ValueError(
                f"{self.sidecar.path.name} writes {name} as {_as_text(shape)} {kind} on {self.device},"
                f" contiguous; given is {_as_text(given.shape)} {given.dtype} on {given.device}"
                f"{'' if found[3] else ', not contiguous'}"
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
