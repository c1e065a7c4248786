"""One graph from PyTorch to an ONNX file: traced, saved, checked, and held against PyTorch."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.export import Dim

import miga_bench
from miga_bench.errors import ExportError
from miga_bench.export import probe
from miga_bench.export.graphs import Graph
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Port, Sidecar, sha256

EXTERNAL_FROM = 1 << 30  # bytes of weights; a protobuf file ends at 2 GiB
SEED = 20
_KEPT_OUT = ("ScatterND", "ScatterElements")  # engines are slow with them or refuse them

Trials = list[tuple[dict[str, int], tuple[Tensor, ...], tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Expected:
    """What a graph has to give.

    Attributes:
        trials: Sizes, inputs and what PyTorch makes of them in float32: nothing where it is not measured.
        kept: What engines are held against, None if there is nothing.
        unprobed: Why there is nothing, of a denoiser.
    """

    trials: Trials
    kept: probe.Probe | None = None
    unprobed: str | None = None


def expected(graph: Graph) -> Expected:
    """Return what a graph has to give."""
    generator = torch.Generator().manual_seed(SEED)
    size, unprobed = probe.sizes(graph)
    trials: Trials = []
    reference = None
    if graph.unmeasured:
        inputs = graph.sample(graph.extent.usual, generator)
        trials.append((dict(graph.extent.usual), inputs, ()))
    if size or not graph.unmeasured:  # else the float32 network is not even loaded
        reference = graph.reference()
    with torch.no_grad():
        for sizes in _trials(graph):
            inputs = graph.sample(sizes, generator)
            assert reference is not None
            trials.append((sizes, inputs, _tuple(reference(*inputs))))
    kept = probe.make(graph, reference, size) if reference is not None and size else None
    return Expected(trials, kept, unprobed)


def _trials(graph: Graph) -> list[dict[str, int]]:
    if graph.unmeasured:
        return []
    return graph.extent.trials() if graph.extent.usual else [{}]


def write_graph(
    graph: Graph,
    wanted: Expected,
    folder: Path,
    opset: int,
    backbone: dict[str, Any],
    lora: dict[str, str] | None = None,
) -> Sidecar:
    """Write a graph, its weights and its sidecar into a folder.

    Args:
        graph: What to write.
        wanted: What it has to give, see ``expected``.
        folder: Where.
        opset: Version of ONNX's operators.
        backbone: Name, family and weights' hash.
        lora: Of the merged LoRA.

    Returns:
        The sidecar, parity included.

    Raises:
        ExportError: The graph is not valid, holds what engines refuse, or does not give what it has to.
        OSError: The disk is full.
    """
    path = folder / f"{graph.name}.onnx"
    size = sum(weight.nbytes for weight in graph.module.parameters())
    _trace(graph, opset).save(path, external_data=size >= EXTERNAL_FROM)
    try:
        onnx.checker.check_model(str(path), full_check=True)
        onnx.shape_inference.infer_shapes_path(str(path), str(path), check_type=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{graph.name} is no valid ONNX graph: {error}") from None
    model = onnx.load(str(path), load_external_data=False)
    operators = Counter(node.op_type for node in model.graph.node)
    _refuse(graph, model, operators)
    about = {**backbone, "precision": graph.precision, "miga_bench": miga_bench.__version__}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in about.items()})
    onnx.save(model, str(path))
    external = sorted(
        {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )
    files = [path.name, *external]
    if wanted.kept is not None:
        probe.save(wanted.kept, folder)
        files.append(probe.NAME)
    sidecar = Sidecar(
        folder=folder,
        graph=graph.name,
        onnx=path.name,
        external_data=external,
        backbone=backbone,
        precision=graph.precision,
        opset=opset,
        inputs=_inputs(graph, wanted.trials[0][1]),
        outputs=_outputs(model),
        operators=dict(operators.most_common()),
        sha256={name: sha256(folder / name) for name in files},
        code=made_by(),
        parity=[],
        tolerance=graph.tolerance,
        lora=lora,
        stored=graph.stored,
        probe=probe.NAME if wanted.kept is not None else None,
        unprobed=wanted.unprobed,
    )
    sidecar = (
        replace(sidecar, parity_reason=graph.unmeasured)
        if graph.unmeasured
        else _measured(sidecar, wanted.trials)
    )
    sidecar.write()
    return sidecar


def _trace(graph: Graph, opset: int) -> Any:
    # one batch and one frame would be taken for constants
    sizes = {"batch": 2, "frames": 5} if graph.extent.usual else {}
    sizes = {k: v if k in graph.extent.dynamic else graph.extent.usual[k] for k, v in sizes.items()}
    inputs = graph.sample(sizes, torch.Generator().manual_seed(SEED))
    named = {"batch": Dim("batch", max=1 << 14), "frames": Dim("frames", min=2, max=1 << 14)}
    free = {name: dim for name, dim in named.items() if name in graph.extent.dynamic}
    dynamic = tuple(
        {place: _dim(size, free) for place, size in enumerate(shape) if _is_free(size, free)}
        for shape in graph.shapes.values()
    )
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            graph.module,
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.shapes),
            output_names=graph.outputs,
            dynamic_shapes=dynamic if free else None,
            verbose=False,
        )


def _is_free(size: int | str, free: dict[str, Any]) -> bool:
    return isinstance(size, str) and size.split("*")[-1] in free


def _dim(size: int | str, free: dict[str, Any]) -> Any:
    """Return torch's dimension of a size such as ``frames`` or ``16*frames``."""
    *factor, name = str(size).split("*")
    return int(factor[0]) * free[name] if factor else free[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter tells of itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    # the registry logs by its own name, below torch.onnx
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refuse(graph: Graph, model: onnx.ModelProto, operators: Counter[str]) -> None:
    """Refuse what engines are slow with or do not take."""
    scattered = [name for name in _KEPT_OUT if operators[name]]
    double = onnx.TensorProto.DOUBLE
    doubles = [t.name for t in model.graph.initializer if t.data_type == double]
    doubles += [v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == double]
    if scattered or (doubles and graph.name == "denoiser"):
        what = ", ".join(scattered) or f"double precision ({doubles[0]}, ...)"
        raise ExportError(f"{graph.name} as a graph holds {what}: engines are not built from that")


def _inputs(graph: Graph, given: tuple[Tensor, ...]) -> dict[str, Port]:
    extent, ports = graph.extent, {}
    for (name, shape), tensor in zip(graph.shapes.items(), given, strict=True):
        free = dict.fromkeys(extent.dynamic, 0)
        settled = [
            size
            if isinstance(size, int) or _is_free(size, free)
            else Port("", [size]).at(**extent.usual)[0]
            for size in shape
        ]
        kind = str(tensor.dtype).removeprefix("torch.")
        ports[name] = Port.input(kind, settled, extent.least, extent.usual, extent.most)
    return ports


def _outputs(model: onnx.ModelProto) -> dict[str, Port]:
    ports = {}
    for value in model.graph.output:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        sizes = value.type.tensor_type.shape.dim
        ports[value.name] = Port(str(kind), [d.dim_param or d.dim_value for d in sizes])
    return ports


def made_by() -> dict[str, str]:
    """Return the versions that made a graph, and a hash of the sources that decide it."""
    package = Path(miga_bench.__file__).parent
    sources = sorted([*package.glob("export/*.py"), *package.glob("backbones/*.py")])
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    known = {"miga_bench": miga_bench.__version__, "source": digest.hexdigest()}
    return known | {name: version(name) for name in ("torch", "onnx", "onnxscript")}


def _measured(sidecar: Sidecar, trials: Trials) -> Sidecar:
    """Return the sidecar with the graph's differences from PyTorch, measured in ONNX Runtime.

    Raises:
        ExportError: One is above the tolerance.
    """
    session = Session(sidecar, check=False)
    parity = []
    for sizes, inputs, outputs in trials:
        got = session(dict(zip(sidecar.inputs, inputs, strict=True)))
        relative = max(
            probe.relative(got[n], o) for n, o in zip(sidecar.outputs, outputs, strict=True)
        )
        parity.append({"shape": sizes, "relative": relative})
        if not relative <= sidecar.tolerance:
            at = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its only shape"
            raise ExportError(
                f"{sidecar.graph} in {sidecar.precision} is {relative:.1e} away from PyTorch at {at},"
                f" more than {sidecar.tolerance:g}: nothing was kept"
            )
    return replace(sidecar, parity=parity)


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
