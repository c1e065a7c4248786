"""ONNX to engine.

The network is strongly typed: the engine computes in the types that the ONNX file has.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miga_bench import __version__
from miga_bench.errors import ExportError, UserError
from miga_bench.export import attention, graphs
from miga_bench.export.sidecar import Sidecar
from miga_bench.export.tensorrt import parity
from miga_bench.export.tensorrt.library import Library, gpu, gpu_model, installed
from miga_bench.export.tensorrt.manifest import FOLDER, Manifest, model_slug
from miga_bench.export.tensorrt.profiles import Profile
from miga_bench.offline import keep_cache

GRAPH = "denoiser"
LEVELS = range(6)
MOST_TOKENS = 2 * graphs.MOST_TOKENS  # of fp32 attention: 1 GB of scores a head and row

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes:
        profiles: As ``Profile.parse`` reads them; none is the sidecar's own.
        capabilities: Compute capabilities, an engine each; none is this machine's GPU.
        weight_streaming: Let weights stay in main memory and come when they are needed.
        refittable: Let the engine take other weights later; it may be slower.
        level: How long the library searches, 0 to 5.
        force: Build also what is there.
    """

    profiles: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    weight_streaming: bool = False
    refittable: bool = False
    level: int = 3
    force: bool = False


def build(folder: Path, library: Library, options: Options, say: Say) -> list[dict[str, Any]]:
    """Build the engines of an export's denoiser.

    Args:
        folder: What ``miga-bench export onnx`` wrote.
        library: Builds.
        options: How.
        say: Is told what is being done, as often as it changes.

    Returns:
        Of each engine its record, with ``engine``, the file, and ``reused``, whether it was there.

    Raises:
        UserError: Wrong input; nothing was built.
        ExportError: The library failed, or what it built is not what PyTorch computes; engines built before
            remain.
    """
    if options.level not in LEVELS:
        raise UserError(
            f"--builder-level is {options.level}: it must be from 0 (quick) to 5 (thorough)"
        )
    capabilities = _capabilities(library, options)
    sidecar = Sidecar.read(folder, GRAPH)
    profiles = [Profile.parse(text, sidecar.inputs) for text in options.profiles]
    profiles = profiles or [Profile.of(sidecar.inputs)]
    _refuse_long_rows(sidecar, profiles)
    say("checking files")
    sidecar.check()
    device, memory = ("", 0) if library.targets else gpu_model()
    plan = [
        Manifest(
            graph=GRAPH,
            onnx=sidecar.identity,
            backbone=sidecar.backbone,
            precision=sidecar.precision,
            library=library.name,
            version=library.version,
            compute_capability=capability,
            profiles=[profile.plain() for profile in profiles],
            builder_level=options.level,
            weight_streaming=options.weight_streaming,
            refittable=options.refittable,
            device=device,
            device_bytes=memory,
        )
        for capability in capabilities
    ]
    return [_engine(sidecar, library, manifest, options.force, say) for manifest in plan]


def _refuse_long_rows(sidecar: Sidecar, profiles: Sequence[Profile]) -> None:
    """Refuse attention in float32 that would hold more scores than a GPU has memory.

    TensorRT has kernels that hold none for half precision alone, see ``_let_attention_decompose``.
    """
    if sidecar.precision != "fp32" or not sidecar.operators.get("Attention"):
        return
    for profile in profiles:
        longest = attention.tokens({name: most for name, (_, _, most) in profile.inputs.items()})
        if longest > MOST_TOKENS:
            raise UserError(
                f"{sidecar.path} is in fp32, and {longest} tokens of a row attend to one another: TensorRT"
                f" holds all their scores then, {4 * longest**2 / 1e9:.1f} GB a head and row, and takes at most"
                f" {MOST_TOKENS} here; export with --precision bf16, or give fewer frames by --profile"
            )


def _capabilities(library: Library, options: Options) -> list[str]:
    """Return what to build for, all of it possible here."""
    here = gpu()
    wanted = list(dict.fromkeys(options.capabilities))
    for capability in wanted:
        if re.fullmatch(r"\d+\.\d", capability) is None:
            raise UserError(
                f"--compute-capability {capability!r} is not of the form 8.9: see "
                "https://developer.nvidia.com/cuda-gpus"
            )
    if options.refittable and here is None:
        raise UserError(
            "--refittable needs a GPU to build: there is none here; build on a machine with one, "
            "or leave it out"
        )
    if not library.targets:
        if here is None:
            other = _by_another(wanted) or (
                ', or for a GeForce or RTX card here by pip install "miga-bench[tensorrt-rtx]" and --library'
                " tensorrt_rtx"
            )
            raise UserError(
                f"{library.name} builds for the GPU it runs on, and there is none here: build on a "
                f"machine with that GPU{other}"
            )
        if wanted not in ([], [here]):
            raise UserError(
                f"--compute-capability {','.join(wanted)}: {library.name} builds for the GPU it runs on, "
                f"which has {here}: build on a machine with that GPU{_by_another(wanted)}"
            )
        return [here]
    names = ", ".join(library.targets)
    if not wanted and here is None:
        raise UserError(
            f"there is no GPU here: say what to build for by --compute-capability, one or several of {names}"
        )
    for capability in wanted or [str(here)]:
        if capability not in library.targets:
            raise UserError(
                f"{library.name} {library.version} does not build for compute capability {capability}: "
                f'it does for {names}; for others: pip install "miga-bench[tensorrt]"'
            )
    return wanted or [str(here)]


def _by_another(wanted: Sequence[str]) -> str:
    """Return the rest of a sentence that names an installed library which builds for these on any machine."""
    with suppress(UserError):
        for name, library in installed().items():
            if library.targets and set(wanted) <= set(library.targets):
                return (
                    f", or add --library {name}, which builds here for {', '.join(library.targets)}"
                )
    return ""


def _engine(
    sidecar: Sidecar, library: Library, manifest: Manifest, force: bool, say: Say
) -> dict[str, Any]:
    path = sidecar.folder / FOLDER / manifest.name
    if not force:
        with suppress(UserError):  # no record, or a damaged one: as if there were no engine
            there = Manifest.read(path)
            if (there.name, there.onnx) == (manifest.name, manifest.onnx) and there.is_of(path):
                return {"engine": str(path), "reused": True, **asdict(there)}
    started = time.perf_counter()
    engine, cache = _serialized(sidecar, library, manifest, say)
    manifest = finished(manifest, engine, time.perf_counter() - started)
    say("comparing with PyTorch")
    manifest = parity.built(manifest, engine, sidecar, library, path)
    say(f"writing {path.name}")
    path = keep(manifest, path.parent, engine)
    cache.keep()  # what was built is on the disk, whatever happens to this
    return {"engine": str(path), "reused": False, **asdict(manifest)}


def keep(manifest: Manifest, folder: Path, engine: Any) -> Path:
    """Write an engine and its record; return the engine's file.

    Raises:
        ExportError: The disk is full, or the folder cannot be written to; nothing half written is left.
    """
    try:
        return manifest.write(folder, engine)
    except OSError as error:
        size = manifest.bytes / 2**20
        raise ExportError(
            f"the engine ({size:.1f} MiB) could not be written to {folder}: "
            f"{(error.strerror or str(error)).lower()}; nothing of it was left there"
        ) from error


def finished(manifest: Manifest, engine: Any, seconds: float) -> Manifest:
    """Return the record of an engine that was just made."""
    return replace(
        manifest,
        build_seconds=round(seconds, 3),
        built=datetime.now(UTC).isoformat(timespec="microseconds"),
        code=__version__,
        bytes=memoryview(engine).nbytes,
        sha256=hashlib.sha256(engine).hexdigest(),
    )


def _serialized(
    sidecar: Sidecar, library: Library, manifest: Manifest, say: Say
) -> tuple[Any, TimingCache]:
    """Return the engine's bytes, as an object with a buffer, and what was measured for it."""
    trt = library.module
    builder = library.made("Builder")
    say(f"reading {sidecar.onnx}")
    # since 11 all networks are strongly typed and the flag means nothing
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(sidecar.path)):  # by path, for weights that lie beside it
        raise UserError(_unsupported(sidecar, library, parser))
    _let_attention_decompose(trt, network)

    config = builder.create_builder_config()
    for content in manifest.profiles:
        profile = builder.create_optimization_profile()
        for name, sizes in Profile.from_plain(content).inputs.items():
            profile.set_shape(name, *sizes)
        config.add_optimization_profile(profile)
    config.builder_optimization_level = manifest.builder_level
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is to mean fp32; who wants speed exports fp16
    _let_shapes_decide_memory(trt, config, manifest.weight_streaming)
    if manifest.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if manifest.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if library.targets:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.target(manifest.compute_capability), 0)
    cache = TimingCache(sidecar.folder / FOLDER, library, manifest, config)
    monitor = _monitor(trt, manifest.compute_capability, say)
    config.progress_monitor = monitor
    say(f"building for {manifest.compute_capability}")
    library.failure()  # forget complaints that the build went on from
    engine = builder.build_serialized_network(network, config)
    if monitor.interruption is not None:
        raise monitor.interruption
    if engine is None:
        raise ExportError(
            f"{library.name} {library.version} could not build {sidecar.path} for compute capability "
            f"{manifest.compute_capability}: {library.failure()}"
        )
    return engine, cache


def _let_shapes_decide_memory(trt: Any, config: Any, streaming: bool) -> None:
    """Let a context take the memory of the shapes it runs, all of it given by us, where the library can.

    Without the one ``update_device_memory_size_for_shapes`` tells what the largest shapes take; without the
    other tensorrt_rtx may allocate while it runs, which no CUDA graph records, but weight streaming has to.
    """
    resize = getattr(getattr(trt, "PreviewFeature", None), "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    given = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if given is not None and not streaming:
        config.set_flag(given)


def _unsupported(sidecar: Sidecar, library: Library, parser: Any) -> str:
    """Say which node the library cannot read."""
    library.failure()
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    named = [error for error in errors if error.node_operator()] or errors
    if not named:
        return f"{library.name} {library.version} cannot read {sidecar.path}"
    first = named[0]
    more = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
    older = " or an export with --opset 20" if attention.opset_20_would_do(sidecar) else ""
    node = f"node {first.node_name() or first.node()!r}, operator {first.node_operator() or '-'}"
    return (
        f"{library.name} {library.version} cannot read {sidecar.path}: {node}{more}: "
        f"{' '.join(first.desc().split())}; a newer {library.name}{older} may do"
    )


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Let attention that no ready-made kernel does be done in parts.

    Without this the build of an Attention in fp32, or with an uncommon head width, fails. The Python
    interface hands such a layer out as its base class, so it is told its own.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    interface = getattr(trt, "IAttentionInputLayer", None)
    if kind is None or interface is None:
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == kind:
            layer.__class__ = interface
            layer.attention.decomposable = True


class TimingCache:
    """Measured kernel times of earlier builds, where the library keeps such: builds repeat faster.

    A library that builds for absent GPUs times nothing. Times are of one model of GPU.
    """

    def __init__(self, folder: Path, library: Library, manifest: Manifest, config: Any) -> None:
        self.config = None if library.targets else config
        gpu_name = "sm" + manifest.compute_capability.replace(".", "")
        names = [f"{library.name}-{library.version}", gpu_name, *model_slug(manifest.device)]
        self.path = folder / f"timing.{'.'.join(names)}.cache"
        if self.config is not None:
            known = b""
            with suppress(OSError):
                known = self.path.read_bytes()
            self.cache = config.create_timing_cache(known)
            if not self.cache or not config.set_timing_cache(self.cache, ignore_mismatch=False):
                self.cache = config.create_timing_cache(b"")
                config.set_timing_cache(self.cache, ignore_mismatch=False)

    def keep(self) -> None:
        """Write what is known now; a folder that takes no more is only a notice."""
        cache = None if self.config is None else self.config.get_timing_cache()
        if cache is None:
            return
        keep_cache(
            self.path, bytes(cache.serialize()), "the engine is whole, a next build measures anew"
        )


def _monitor(trt: Any, capability: str, say: Say) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells how far the outermost phase is; keeps an interruption until the build has ended."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interruption: BaseException | None = None
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            # called from C++, where an exception (Ctrl-C, too) would end the process
            try:
                if phase in self.steps:
                    say(
                        f"building for {capability}: {phase.lower()}, {step + 1}/{self.steps[phase]}"
                    )
            except BaseException as error:
                self.interruption = error
            return self.interruption is None

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
