"""What runs the denoiser if the user does not say: PyTorch, or an export for much work on a CPU.

ONNX Runtime runs the embedded models faster than PyTorch, but they have to be exported first. That is done if
it pays within the one video that is asked for, and the export is kept for later ones. The choice depends only
on what is asked for, not on what is kept, so that the same command makes the same video.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from miga_bench.backbones.base import Backbone
from miga_bench.errors import Notice, UserError, in_print, told
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.onnx_folder import export_onnx
from miga_bench.export.onnx_graph import made_by
from miga_bench.export.opening import open_model
from miga_bench.export.request import FACTS, OnnxRequest
from miga_bench.export.sidecar import Sidecar
from miga_bench.harness.locks import NamedLock
from miga_bench.offline import cache_folder
from miga_bench.sampling.base import Sampler
from miga_bench.sampling.estimate import estimate

# Denoiser evaluations, searches left out, from which exporting pays: `make bench-export` on an AMD EPYC,
# rounded.
PAYS_FROM = {"tiny-wan": 2000, "tiny-videocrafter2": 3200}


def faster(backbone: Any, sampler: Sampler[Any], latents: int | None) -> Backbone:
    """Return the backbone, or one that runs on its export if that finishes sooner.

    Args:
        backbone: In PyTorch; returned as it is if it is no embedded model.
        sampler: The method.
        latents: How many to make; None is endless, where PyTorch shows its first frames sooner.

    Raises:
        UserError: A setting breaks a rule of the method.
    """
    if not _pays(backbone, sampler, latents):
        return backbone
    try:
        return _exported(backbone, cache_folder("onnx") / f"{backbone.name}-{_identity(backbone)}")
    except Exception as error:  # whatever it is: nobody has asked for an export
        warnings.warn(
            f"{backbone.name} cannot be exported ({in_print(told(error))}): PyTorch runs the denoiser;"
            " --denoiser torch does so without a try",
            Notice,
            stacklevel=2,
        )
        return backbone


def _exported(backbone: Any, folder: Path) -> Backbone:
    """Return the backbone on its export in a folder, or as it is where that takes none."""
    try:
        # another command may be at it
        with NamedLock(folder.with_name(f".{folder.name}.lock")).held():
            kept = _kept(backbone, folder)
            if kept is not None:
                return kept
            shutil.rmtree(folder, ignore_errors=True)
            warnings.warn(
                f"{backbone.name} is exported first, once, which pays at this length; --denoiser torch"
                " goes without",
                Notice,
                stacklevel=3,
            )
            export_onnx(OnnxRequest(backbone.name, folder))
            return _open(backbone, folder)
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be written ({error.strerror}): PyTorch runs the denoiser; set"
            " MIGA_BENCH_CACHE to a folder of yours",
            Notice,
            stacklevel=3,
        )
        return backbone


def _pays(backbone: Any, sampler: Sampler[Any], latents: int | None) -> bool:
    """Tell whether a video is so much work that an export saves more than it takes."""
    least = PAYS_FROM.get(backbone.name)
    if (
        latents is None
        or least is None
        or backbone.denoiser_identity != "torch"
        or backbone.device != "cpu"
    ):
        return False
    settings = sampler.settings
    if settings.cache or getattr(settings, "guidance_cut", False):
        return False  # what changes the network's inside
    # a latent takes an evaluation at least, so that more of them need not be walked through
    found = estimate(sampler, backbone, min(latents, least), batch=1)
    return found.nfe >= least and not any(call.attention for call in found.calls)


def _identity(backbone: Any) -> str:
    return f"{backbone.weights_hash[:16]}-{made_by()['source'][:16]}"


def _open(backbone: Any, folder: Path) -> Backbone:
    return open_model(backbone.name, DenoiserChoice("onnx", folder), device="cpu")


def _kept(backbone: Any, folder: Path) -> Backbone | None:
    """Return the backbone on an intact earlier export, None if there is none."""
    if not folder.is_dir():
        return None
    try:
        for record in folder.glob("*.json"):
            if record.name != FACTS:
                Sidecar.read(folder, record.stem).check()
        return _open(backbone, folder)
    except UserError:
        return None
