"""Exports that several tests look at: each is made once, which takes most of these tests' time."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from vc2_fixtures import tiny_folder as vc2_folder
from wan_fixtures import tiny_folder as wan_folder

from miga_bench.export.onnx_folder import export_onnx
from miga_bench.export.request import OnnxRequest
from miga_bench.harness.locks import NamedLock


def export(backbone, folder, **changes):
    return export_onnx(OnnxRequest(str(backbone), Path(folder), **changes))


@functools.cache
def _root() -> Path:
    """A folder of this test run's: its processes share what one of them has exported."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return Path(tempfile.mkdtemp(prefix="onnx-exports-"))
    root = Path(tempfile.gettempdir()) / f"onnx-exports-{run}"
    root.mkdir(exist_ok=True)
    return root


def _once(name: str, make: Callable[[Path], object]) -> Path:
    folder = _root() / name
    with NamedLock(_root() / f".{name}.lock").held():
        if not folder.exists():  # an export is there whole, or not at all
            make(folder)
    return folder


def embedded_wan() -> Path:
    """The embedded Wan model, all of it."""
    return _once("wan", lambda folder: export("tiny-wan", folder))


def random_vc2() -> Path:
    """A random VideoCrafter2 model of two levels, all of it; its source lies beside."""

    def make(folder: Path) -> None:
        source = vc2_folder(_root() / "vc2-source")
        export(source, folder, height=16, width=16, frames=4)

    return _once("vc2", make)


def fixed_half_wan() -> Path:
    """A random Wan denoiser in half precision, older operators, one size only; its source lies beside."""

    def make(folder: Path) -> None:
        source = wan_folder(_root() / "wan-source")
        settings = {"precision": "fp16", "opset": 20, "dynamic": (), "parts": ("denoiser",)}
        export(source, folder, height=16, width=32, frames=3, batch=2, **settings)

    return _once("wan-half", make)
