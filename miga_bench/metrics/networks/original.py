"""Networks that are taken from the installed ``vbench`` package instead of being written anew.

AMT may be used for non-commercial purposes only (CC BY-NC 4.0), so nothing of it is in this
package; RAFT and ViCLIP come the same way. Importing ``vbench`` runs an ``__init__`` that asks for
decord and torchvision; the networks need neither, so they are imported from its folder without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from miga_bench.errors import UserError

INSTALL = "pip install --no-deps vbench==0.1.5"
# AMT and RAFT correlate frames at an eighth of their size, and at a half, a quarter and an eighth of
# that. The last has 2 pixels at least on both sides, for the networks divide by one less: below, a
# CPU gives NaN, and a GPU a number in which that level counts for nothing.
LEAST_CORRELATED = 8 * 2**3 * 2


def folder() -> Path:
    """Return where the ``vbench`` package lies.

    Raises:
        UserError: It is not installed.
    """
    spec = importlib.util.find_spec("vbench")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this network is in the package vbench, which is missing: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def module(name: str, install: str = INSTALL) -> ModuleType:
    """Import ``vbench.<name>`` without running the package's own ``__init__``.

    Args:
        name: Of the module below ``vbench``.
        install: The command that installs everything the module needs.

    Raises:
        UserError: ``vbench`` or something the module needs is not installed.
    """
    place = str(folder())
    bare = "vbench" not in sys.modules
    if bare:
        package = ModuleType("vbench")
        package.__path__ = [place]
        sys.modules["vbench"] = package
    try:
        return importlib.import_module(f"vbench.{name}")
    except ImportError as error:
        raise UserError(
            f"vbench.{name} needs a package that is missing ({error}): {install}"
        ) from error
    finally:
        # whoever imports vbench itself afterwards gets the whole of it
        if bare:
            del sys.modules["vbench"]


def import_torchvision() -> object:
    """Import torchvision, also where it was built for another torch, as beside a CPU-only one.

    Such a torchvision asks for the names of two of its kernels; only its plain functions are used
    here. To be called before anything that imports torchvision if it is there, such as torchmetrics.

    Returns:
        What has to stay alive.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for kernel in ("nms", "qnms"):
            library.define(f"{kernel}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")
        return library
    return None
