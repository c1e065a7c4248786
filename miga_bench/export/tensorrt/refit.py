"""An engine with other weights, without building: a LoRA was merged into them, or they were trained on."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from miga_bench.errors import ExportError, UserError
from miga_bench.export.sidecar import Sidecar
from miga_bench.export.tensorrt.build import GRAPH, Say, finished, keep
from miga_bench.export.tensorrt.manifest import FOLDER, Manifest


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
    from miga_bench.export.tensorrt.runtime import load_engine

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
    if not parser.refit_from_file(str(sidecar.path)) or not refitter.refit_cuda_engine():
        raise ExportError(
            f"{old.library} {old.version} could not refit {engine} from {sidecar.path}: "
            f"{library.failure()}"
        )
    content = loaded.engine.serialize()
    seconds = time.perf_counter() - started
    new = replace(old, onnx=sidecar.identity, backbone=sidecar.backbone)
    manifest = finished(new, content, seconds)
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
    return manifest
