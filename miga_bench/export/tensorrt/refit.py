"""An engine with other weights, without building: a LoRA was merged into them, or they were trained on."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from miga_bench.errors import ExportError, UserError
from miga_bench.export.sidecar import Sidecar
from miga_bench.export.tensorrt.build import GRAPH, Say, finished, keep
from miga_bench.export.tensorrt.library import Library
from miga_bench.export.tensorrt.manifest import FOLDER, Manifest
from miga_bench.export.tensorrt.parity import held
from miga_bench.export.tensorrt.runtime import load_engine

Weights = dict[str, tuple[int, list[int]]]  # type and shape by name


def refit(folder: Path, engine: Path, say: Say) -> dict[str, Any]:
    """Give a refittable engine the weights of another export, and keep it as that export's engine.

    Args:
        folder: The export with the new weights; its graph is the engine's.
        engine: A refittable engine in the folder of its own export; stays as it is.
        say: Is told what is being done.

    Returns:
        The new engine's record, with ``engine``, its file.

    Raises:
        UserError: The engine cannot take these weights; nothing was written.
        ExportError: The library failed; nothing was written.
    """
    sidecar = Sidecar.read(folder, GRAPH)
    old = check(engine, sidecar)
    say("checking files")
    sidecar.check()
    say(f"loading {engine.name}")
    started = time.perf_counter()
    loaded = load_engine(engine)
    library = loaded.library
    say(f"refitting from {sidecar.onnx}")
    refitter = library.made("Refitter", loaded.engine)
    parser = library.module.OnnxParserRefitter(refitter, library.logger)
    content = None
    if parser.refit_from_file(str(sidecar.path)) and refitter.refit_cuda_engine():
        content = loaded.engine.serialize()
    if content is None:
        raise ExportError(
            f"{old.library} {old.version} could not refit {engine} from {sidecar.path}: "
            f"{_reason(library, parser)}"
        )
    seconds = time.perf_counter() - started
    new = replace(old, onnx=sidecar.identity, backbone=sidecar.backbone)
    say("comparing with PyTorch")
    fresh = replace(loaded, kernels=None)  # what is kept there is the old engine's
    manifest = held(finished(new, content, seconds), fresh, sidecar)
    path = keep(manifest, folder / FOLDER, content)
    return {"engine": str(path), "reused": False, **asdict(manifest)}


def check(engine: Path, sidecar: Sidecar) -> Manifest:
    """Return the record of an engine that can take the weights of an export.

    Raises:
        UserError: It cannot.
    """
    if not engine.is_file():
        raise UserError(f"--refit {engine} is missing: give an engine of another export")
    manifest = Manifest.read(engine)
    if not manifest.refittable:
        raise UserError(f"--refit {engine} is not refittable: build it with --refittable")
    old = Sidecar.read(engine.absolute().parent.parent, GRAPH)
    for what in ("precision", "opset", "inputs", "outputs", "operators"):
        if getattr(old, what) != getattr(sidecar, what):
            raise UserError(
                f"--refit {engine} is of another graph than {sidecar.path} ({what} differ): only weights "
                "can be exchanged; build an engine of it instead"
            )
    _compare(engine, _initializers(old.path), _initializers(sidecar.path), sidecar.path)
    return manifest


def _reason(library: Library, parser: Any) -> str:
    """Return why a refit failed: what the parser says, or else the library."""
    complaint = library.failure()
    errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
    return " ".join(errors[-1].split()) if errors else complaint


def _initializers(path: Path) -> Weights:
    """Return type and shape of each weight of an ONNX file, by name."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's own kinds have no base but this
        raise UserError(
            f"--refit needs the graph {path}, which cannot be read ({error}): export it again"
        ) from None
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}


def _compare(engine: Path, old: Weights, new: Weights, path: Path) -> None:
    """Refuse weights that are not, one for one, the engine's.

    The exporter makes one weight of equal ones, which need not be equal after training: what is then missing
    by name would keep the engine's old values in silence.
    """
    others = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if others:
        raise UserError(
            f"--refit {engine} has other weights than {path} ({others[0]!r} and {len(others) - 1} more differ"
            " in name, type or shape): build an engine of it instead"
        )
