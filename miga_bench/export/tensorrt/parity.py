"""An engine held against PyTorch, once, on the GPU that it is for: a wrong one is not kept.

The export's probe (see ``export/probe.py``) goes through the same denoiser that samplers call: profiles, rotary
tables and addresses are tried with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from miga_bench.errors import DoesNotFitError, ExportError
from miga_bench.export import probe
from miga_bench.export.sidecar import Sidecar
from miga_bench.export.tensorrt.library import Library, gpu
from miga_bench.export.tensorrt.manifest import Manifest
from miga_bench.export.tensorrt.profiles import Profile, Shape
from miga_bench.export.tensorrt.runtime import LoadedEngine, TensorRTDenoiser, is_for_want_of_memory

# Of the largest value. What is wrong in an engine (other weights, a kernel that overflows) is off by about as
# much as the values are. The graph itself is held to 1e-4 and 5e-3 (``graphs.TOLERANCE``); an engine adds in
# another order, fuses, and rounds elsewhere. On the embedded models PyTorch's own bfloat16 is up to 1.6e-2 away
# from its float32, its float16 up to 1.7e-3.
TOLERANCE = {"fp32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}
NO_MEMORY = "memory of the GPU did not suffice"


def built(
    manifest: Manifest, content: Any, sidecar: Sidecar, library: Library, path: Path
) -> Manifest:
    """Return the record of an engine that was just built, with what was measured of it.

    Args:
        manifest: Its record so far.
        content: Its bytes.
        sidecar: The graph's.
        library: Built it.
        path: Where it is to lie.

    Raises:
        ExportError: The library cannot load it, or it is too far from PyTorch.
    """
    here = gpu()
    if here != manifest.compute_capability:
        place = "no GPU" if here is None else f"one of {here}"
        return replace(
            manifest, parity_reason=f"built for {manifest.compute_capability}, here is {place}"
        )
    if sidecar.probe is None:
        return held(manifest, None, sidecar)
    runtime = library.made("Runtime")
    library.failure()
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        reason = library.failure()
        if is_for_want_of_memory(reason, manifest.bytes, "cuda"):
            return replace(manifest, parity=None, parity_reason=NO_MEMORY)
        raise ExportError(
            f"{library.name} {library.version} cannot load the engine that it built of {sidecar.path}"
            f" ({reason}): nothing was kept"
        )
    return held(manifest, LoadedEngine(engine, runtime, library, path, manifest), sidecar)


def held(
    manifest: Manifest, loaded: LoadedEngine | None, sidecar: Sidecar, device: str = "cuda"
) -> Manifest:
    """Return an engine's record with its difference from PyTorch, or with the reason why there is none.

    Args:
        manifest: Its record so far.
        loaded: The engine; None where the export holds nothing to measure it by.
        sidecar: The graph's.
        device: The GPU.

    Raises:
        ExportError: It is too far from PyTorch.
    """
    if loaded is None or sidecar.probe is None:
        reason = sidecar.unprobed or "the export holds no answer of PyTorch: export it again"
        return replace(manifest, parity=None, parity_reason=reason)
    given = probe.load(sidecar)
    wanted, fps = given[probe.ANSWER], given.get("fps")
    inputs = [given[name].to(device) for name in ("latents", "timesteps", "text")]
    try:
        denoiser = TensorRTDenoiser(
            loaded, device, fps=None if fps is None else float(fps[0]), graphs=False
        )
        rows = _rows(denoiser.profiles, tuple(inputs[0].shape))
        if rows is None:
            frames = inputs[0].shape[2]
            reason = f"no profile takes the {frames} latent frames that PyTorch's answer is for"
            return replace(manifest, parity=None, parity_reason=reason)
        got = denoiser(*(x.expand(rows, *x.shape[1:]) for x in inputs)).cpu()
    except (torch.OutOfMemoryError, DoesNotFitError):
        return replace(manifest, parity=None, parity_reason=NO_MEMORY)
    found = probe.relative(got, wanted.expand_as(got))
    allowed = TOLERANCE[manifest.precision]
    if not found <= allowed:
        raise ExportError(
            f"the engine of {sidecar.path} by {manifest.library} {manifest.version} is {found:.1e} away from"
            f" PyTorch, more than {allowed:g} in {manifest.precision}: it was not kept; try another"
            " --builder-level, or another version"
        )
    return replace(manifest, parity=found, parity_reason=None)


def _rows(profiles: Sequence[Profile], latents: Shape) -> int | None:
    """Return the least rows of a call of such latents, whatever their own rows; None if there is none."""
    for profile in profiles:
        least = profile.inputs["latents"][0]
        if profile.takes({"latents": (least[0], *latents[1:])}):
            return least[0]
    return None
