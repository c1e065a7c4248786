"""An engine behind the ``Denoiser`` interface.

Tensors stay on the GPU and work is queued on torch's current stream. Each set of shapes has a plan: an
execution context, and from the second call on a CUDA graph. All plans work in one scratch memory, as large
as the largest shape so far needs, so one denoiser is for one stream at a time.
"""

from __future__ import annotations

import copy
import math
import mmap
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones import memory
from miga_bench.backbones.base import HEADROOM
from miga_bench.errors import DoesNotFitError, Notice, UserError
from miga_bench.export.sidecar import sha256
from miga_bench.export.tensorrt.kernels import Kernels
from miga_bench.export.tensorrt.library import Library, gpu, gpu_model, installed
from miga_bench.export.tensorrt.manifest import Manifest, find
from miga_bench.export.tensorrt.profiles import (
    Profile,
    Shape,
    choose,
    rows_of_calls,
    with_rows,
)

OUTPUT = "prediction"
UNBATCHED = ("cos", "sin")  # one table for all rows
ALIGNMENT = 256  # bytes; what TensorRT asks of an address

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
}
_KEPT_PLANS = 8
_NO_MEMORY = ("out of memory", "outofmemory", "could not be allocated", "memoryallocation")


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine in memory, with what has to live as long as it."""

    engine: Any
    runtime: Any
    library: Library
    path: Path
    manifest: Manifest | None
    kernels: Kernels | None = None


def load_engine(where: Path, device: str = "cuda", trusted: bool = False) -> LoadedEngine:
    """Load an engine, see ``find`` for which.

    Raises:
        UserError: There is no library or GPU, or no engine that may be loaded.
        DoesNotFitError: Its weights do not fit on the GPU.
    """
    libraries = installed()
    capability = gpu(device) if torch.device(device).type == "cuda" else None
    if capability is None:
        place = f"not on {device}" if torch.cuda.is_available() else "and there is none here"
        raise UserError(
            f"engines run on a GPU, {place}: run the exported graph instead, "
            f"--denoiser onnx:{where if where.is_dir() else 'DIR'}"
        )
    versions = {name: library.version for name, library in libraries.items()}
    model, size = gpu_model(device)
    path, manifest = find(where, versions, capability, trusted, model)
    reason = manifest.elsewhere(model, size) if manifest else None
    if reason:
        warnings.warn(
            f"{path} {reason}: it may be slow, or not fit; build one here: miga-bench export tensorrt DIR",
            Notice,
            stacklevel=2,
        )
    library = libraries[manifest.library] if manifest else next(iter(libraries.values()))
    runtime = library.made("Runtime")
    library.failure()
    with _current(torch.device(device)):
        engine = deserialize(runtime, path)
    if engine is None:
        reason, bytes_ = library.failure(), path.stat().st_size
        if is_for_want_of_memory(reason, bytes_, device):
            raise DoesNotFitError(
                f"{path} ({bytes_ / 2**30:.1f} GiB) does not fit in the memory that is free on {device}"
                f" ({reason}): free some there, or build it with --weight-streaming"
            )
        raise UserError(
            f"{library.name} {library.version} cannot load {path}: {reason}; build it again on this machine"
        )
    kernels = None
    if library.targets:  # it compiles kernels here; the other library's are in the engine
        known = manifest.sha256 if manifest and not trusted else sha256(path)
        kernels = Kernels(known, model, library.version)
    return LoadedEngine(engine, runtime, library, path, manifest, kernels)


def is_for_want_of_memory(reason: str, size: int, device: str) -> bool:
    """Tell whether an engine was refused for want of memory, which its library need not say.

    Args:
        reason: The library's.
        size: Bytes of the engine; most of them are weights.
        device: The GPU.
    """
    if any(sign in reason.lower() for sign in _NO_MEMORY):
        return True
    free = memory.free_bytes(torch.device(device))
    return free is not None and free < size


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the one that the library means when it names none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def deserialize(runtime: Any, path: Path) -> Any:
    """Return the engine in a file, None if the library refuses it."""
    with (
        path.open("rb") as file,
        # mapped, so that gigabytes of weights are not in memory twice
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return runtime.deserialize_cuda_engine(content)


class TensorRTDenoiser:
    """Runs an exported denoiser as a TensorRT engine.

    Args:
        loaded: The engine.
        device: The GPU, as torch names it.
        fps: Frame rate to tell a VideoCrafter2 network.
        graphs: Whether to record a CUDA graph for each set of shapes.
        weight_budget: Bytes of weights to keep on the GPU, for engines built with weight streaming; None
            lets the library choose.

    Attributes:
        profiles: The sizes the engine takes.
        max_batch: The most rows of one engine call; larger batches are split.
        row_flops: Returns the operations of one row of so many latents, where the graph's facts tell them.

    Raises:
        UserError: The engine is of something else, or ``weight_budget`` is negative, or given for an
            engine that holds all weights.
    """

    row_flops: Callable[[int], int] | None = None

    def __init__(
        self,
        loaded: LoadedEngine,
        device: str = "cuda",
        *,
        fps: float | None = None,
        graphs: bool = True,
        weight_budget: int | None = None,
    ) -> None:
        engine, trt = loaded.engine, loaded.library.module
        self.loaded = loaded
        self.device = torch.device(device)
        self.graphs = graphs
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self.inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if "latents" not in self.inputs or OUTPUT not in names:
            raise UserError(
                f"{loaded.path} is no engine of a denoiser: it takes and gives {', '.join(names)}"
            )
        self.dtypes = {name: _DTYPES[engine.get_tensor_dtype(name).name] for name in names}
        self.profiles = [
            Profile({n: _shapes(engine.get_tensor_profile_shape(n, p)) for n in self.inputs})
            for p in range(engine.num_optimization_profiles)
        ]
        self.max_batch = max(profile.inputs["latents"][2][0] for profile in self.profiles)
        self.fps = self._rate(fps)
        self._rotary = self._tables()
        with _current(self.device):
            self._stream_weights(weight_budget)
        self._memory = [torch.empty(0, dtype=torch.uint8, device=self.device)]
        self._plans: OrderedDict[tuple[Shape, ...], _Plan] = OrderedDict()

    def latents_taken(self) -> range:
        """Return how many latents a row may have, by all profiles."""
        sizes = [profile.inputs["latents"] for profile in self.profiles]
        return range(min(least[2] for least, _, _ in sizes), max(most[2] for *_, most in sizes) + 1)

    @classmethod
    def load(
        cls,
        where: str | Path,
        device: str = "cuda",
        *,
        trusted: bool = False,
        fps: float | None = None,
        graphs: bool = True,
        weight_budget: int | None = None,
    ) -> TensorRTDenoiser:
        """Load the engine of an export folder, or one engine.

        Args:
            where: The folder, or an engine in it.
            device: The GPU.
            trusted: Whether the user vouches for ``where``, an engine that lies elsewhere.
            fps: See the class.
            graphs: See the class.
            weight_budget: See the class.

        Raises:
            UserError: See ``load_engine`` and the class.
        """
        loaded = load_engine(Path(where), device, trusted)
        return cls(loaded, device, fps=fps, graphs=graphs, weight_budget=weight_budget)

    @property
    def scratch(self) -> Tensor:
        """The memory that plans work in."""
        return self._memory[0]

    def rows_that_fit(self) -> int:
        """Return the most rows of a call whose scratch memory is free now, at least 1."""
        free = memory.free_bytes(self.device)
        if free is None:
            return self.max_batch
        row = max(1, self.loaded.engine.device_memory_size_v2 // self.max_batch)
        return max(1, min(self.max_batch, int(HEADROOM * (free + self.scratch.nbytes)) // row))

    def reserve(self, size: int) -> Tensor:
        """Return scratch memory of at least so many bytes; plans that worked in a smaller one are dropped.

        Raises:
            OutOfMemoryError: There is not as much.
        """
        if self.scratch.nbytes < size:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # a plan that goes may be at work
            self._plans.clear()
            self._memory.clear()  # a list, for denoisers with another rate share it
            self._memory.append(torch.empty(0, dtype=torch.uint8, device=self.device))
            self._memory[0] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self.scratch

    def telling(self, fps: float) -> TensorRTDenoiser:
        """Return this denoiser, engine and plans shared, with another frame rate to tell the network."""
        other = copy.copy(self)
        other.fps = self._rate(fps)
        return other

    @torch.inference_mode()
    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict, see ``Denoiser``.

        A batch that no profile takes whole is done in several calls: of guidance, both halves go
        through one call where they fit.

        Raises:
            UserError: A shape lies outside of all profiles.
        """
        feeds = self._feeds(latents, timesteps, text)
        shapes = {name: tuple(feeds[name].shape) for name in self.inputs}
        batched = [name for name in self.inputs if name not in UNBATCHED]
        parts, first = [], 0
        with _current(self.device):
            for count in rows_of_calls(self.profiles, shapes, batched):
                part = {
                    name: feed[first : first + count] if name in batched else feed
                    for name, feed in feeds.items()
                }
                parts.append(self._plan(with_rows(shapes, batched, count))(self, part))
                first += count
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        return output.to(latents.dtype)

    def _feeds(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Return all inputs in the engine's types."""
        if latents.device.type != self.device.type:
            raise ValueError(f"latents are on {latents.device}, the engine is on {self.device}")
        feeds = {"latents": latents, "timesteps": timesteps, "text": text}
        if self._rotary is not None:
            feeds["cos"], feeds["sin"] = self._rotary(latents)
        if self.fps is not None:
            feeds["fps"] = torch.full((len(latents),), self.fps, device=self.device)
        return {
            name: feeds[name].to(self.device, self.dtypes[name]).contiguous()
            for name in self.inputs
        }

    def _plan(self, shapes: dict[str, Shape]) -> _Plan:
        """Return the plan of these shapes; the one that was not used for longest makes room."""
        key = tuple(shapes[name] for name in self.inputs)
        if key not in self._plans:
            number = choose(self.profiles, shapes)
            assert number is not None  # rows_of_calls took care
            self._plans[key] = self._planned(shapes, number)
            if len(self._plans) > _KEPT_PLANS:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # the plan that goes may be at work
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _planned(self, shapes: dict[str, Shape], number: int) -> _Plan:
        """Return a new plan.

        Raises:
            OutOfMemoryError: Memory does not suffice, fewer rows may do.
            DoesNotFitError: It does not suffice for one row.
        """
        try:
            return _Plan(self, shapes, number)
        except torch.OutOfMemoryError as error:
            rows, _, frames, height, width = shapes["latents"]
            if rows > 1:
                raise
            raise DoesNotFitError(
                f"out of memory on {self.device} in a call of a single row of {frames} latent frames of"
                f" {height}x{width} ({' '.join(str(error).split())[:120]}): free some there, or build an engine"
                f" for less: miga-bench export tensorrt DIR --profile batch=1,frames={frames}"
            ) from None

    def _rate(self, fps: float | None) -> float | None:
        if "fps" not in self.inputs:
            return None
        if fps is None:
            raise UserError(f"the network in {self.loaded.path} is told a frame rate: give fps")
        return fps

    def _tables(self) -> Any:
        """Return the builder of rotary tables where the graph takes them: Wan."""
        if "cos" not in self.inputs:
            return None
        from miga_bench.backbones.rotary import Rotary

        _, (_, _, frames, height, width), _ = self.profiles[0].inputs["latents"]
        _, (_, tokens, _, pairs), _ = self.profiles[0].inputs["cos"]
        patch = math.isqrt(height * width * frames // tokens)
        return Rotary(2 * pairs, patch, patch)

    def _stream_weights(self, budget: int | None) -> None:
        """Set how much of the weights stays on the GPU; has to come before any context."""
        engine = self.loaded.engine
        if not engine.streamable_weights_size:
            if budget is not None:
                raise UserError(
                    f"{self.loaded.path} holds all weights on the GPU, a weight budget means nothing to "
                    "it: build it with --weight-streaming"
                )
            return
        if budget is not None and budget < 0:
            raise UserError(f"the weight budget is {budget} bytes: it must be 0 or more")
        chosen = self._weights_that_fit() if budget is None else budget
        engine.weight_streaming_budget_v2 = min(chosen, engine.streamable_weights_size)
        # weights that come from main memory during a call cannot be part of a recorded graph
        self.graphs &= engine.weight_streaming_budget_v2 >= engine.streamable_weights_size

    def _weights_that_fit(self) -> int:
        """Return how many bytes of streamable weights have room on the GPU beside the scratch memory.

        TensorRT's own choice comes through its Python interface as 32 bits: beyond 2 GiB it is any number.
        """
        engine, free = self.loaded.engine, memory.free_bytes(self.device)
        if free is None:
            return int(engine.streamable_weights_size)
        engine.weight_streaming_budget_v2 = 0  # streamed weights pass through scratch memory, too
        return max(0, int(HEADROOM * free) - engine.device_memory_size_v2)


class _Plan:
    """One set of shapes: its context, and once it is warm its CUDA graph with buffers of its own."""

    # A plan keeps no denoiser: several share it, and memory would stay until Python looks for cycles.
    def __init__(self, denoiser: TensorRTDenoiser, shapes: dict[str, Shape], profile: int) -> None:
        self.loaded, self.device = denoiser.loaded, denoiser.device
        self.context = _context(self.loaded)
        if self.context is None:  # what it takes itself is little, so next to nothing is free
            raise torch.OutOfMemoryError(self.loaded.library.failure())
        self._check(self.context.set_optimization_profile_async(profile, self._stream()))
        for name, shape in shapes.items():
            self._check(self.context.set_input_shape(name, shape))
        scratch = denoiser.reserve(self._scratch())
        self.context.set_device_memory(scratch.data_ptr(), scratch.nbytes)
        self.output_shape = tuple(self.context.get_tensor_shape(OUTPUT))
        self.output_type = denoiser.dtypes[OUTPUT]
        self.warm = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.buffers: dict[str, Tensor] = {}

    def _scratch(self) -> int:
        """Return the bytes of scratch memory that these shapes take, or all profiles' if that is not told."""
        engine = self.loaded.engine
        update = getattr(self.context, "update_device_memory_size_for_shapes", None)
        # streamed weights pass through scratch, too
        if update is None or engine.streamable_weights_size:
            return max(1, engine.device_memory_size_v2)
        return max(1, update() or engine.device_memory_size_v2)

    def __call__(self, denoiser: TensorRTDenoiser, feeds: dict[str, Tensor]) -> Tensor:
        """Return the prediction, the caller's own tensor."""
        if self.warm and self.graph is None and denoiser.graphs:
            denoiser.graphs = self._record(feeds)
        if self.graph is not None:
            for name, feed in feeds.items():
                self.buffers[name].copy_(feed)
            self.graph.replay()
            return self.buffers[OUTPUT].clone()  # the next call overwrites the graph's own
        output = self._empty_output()
        # a slice may lie where the engine cannot read from
        aligned = {n: x.clone() if x.data_ptr() % ALIGNMENT else x for n, x in feeds.items()}
        self._execute({**aligned, OUTPUT: output})
        kernels = self.loaded.kernels
        if kernels is not None and not self.warm:
            kernels.keep()  # those of these shapes are among them now
        self.warm = True
        return output

    def _execute(self, tensors: dict[str, Tensor]) -> None:
        """Queue one run on the current stream, in and out of these tensors' own memory."""
        for name, tensor in tensors.items():
            self._check(self.context.set_tensor_address(name, tensor.data_ptr()))
        self._check(self.context.execute_async_v3(self._stream()))

    def _record(self, feeds: dict[str, Tensor]) -> bool:
        """Record the run, which had to run once since the shapes were set; return whether it can be."""
        buffers = {name: feed.clone() for name, feed in feeds.items()}
        buffers[OUTPUT] = self._empty_output()
        before, stream = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            capturable = getattr(self.context, "is_stream_capturable", None)
            if capturable is not None and not capturable(stream.cuda_stream):
                raise RuntimeError("the library says that it cannot be recorded")
            # by default whatever another thread allocates on a GPU meanwhile would break the recording
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._execute(buffers)
        except RuntimeError as error:
            # torch stays on the stream that it records, if ending that fails
            torch.cuda.set_stream(before)
            reason = " ".join(str(error).split())
            warnings.warn(Notice(f"the engine runs without CUDA graphs: {reason}"), stacklevel=2)
            return False
        self.graph, self.buffers = graph, buffers
        return True

    def _empty_output(self) -> Tensor:
        return torch.empty(self.output_shape, dtype=self.output_type, device=self.device)

    def _stream(self) -> int:
        if self.device.type != "cuda":
            return 0
        return torch.cuda.current_stream(self.device).cuda_stream

    def _check(self, done: bool) -> None:
        if not done:
            raise RuntimeError(f"the engine did not run: {self.loaded.library.failure()}")


def _context(loaded: LoadedEngine) -> Any:
    """Return an execution context that works in memory that is given to it."""
    trt = loaded.library.module
    given = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not loaded.library.targets:
        return loaded.engine.create_execution_context(given)
    # tensorrt_rtx compiles kernels when it meets a shape: at once and not beside the first runs, which
    # a graph could not record
    config = loaded.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(given)
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    if loaded.kernels is not None:
        loaded.kernels.attach(config)
    return loaded.engine.create_execution_context(config)


def _shapes(dims: Any) -> tuple[Shape, Shape, Shape]:
    least, usual, most = (tuple(int(size) for size in shape) for shape in dims)
    return least, usual, most
