"""Exports that several tests look at: each is made once, which takes most of these tests' time."""

import functools
import tempfile
from pathlib import Path

from vc2_fixtures import tiny_folder as vc2_folder
from wan_fixtures import tiny_folder as wan_folder

from miga_bench.export.onnx_folder import export_onnx
from miga_bench.export.request import OnnxRequest


def export(backbone, folder, **changes):
    return export_onnx(OnnxRequest(str(backbone), Path(folder), **changes))


@functools.cache
def _root() -> Path:
    return Path(tempfile.mkdtemp(prefix="onnx-exports-"))


@functools.cache
def embedded_wan() -> Path:
    """The embedded Wan model, all of it."""
    export("tiny-wan", _root() / "wan")
    return _root() / "wan"


@functools.cache
def random_vc2() -> Path:
    """A random VideoCrafter2 model of two levels, all of it; its source lies beside."""
    source = vc2_folder(_root() / "vc2-source")
    export(source, _root() / "vc2", height=16, width=16, frames=4)
    return _root() / "vc2"


@functools.cache
def fixed_half_wan() -> Path:
    """A random Wan denoiser in half precision, older operators, one size only; its source lies beside."""
    source = wan_folder(_root() / "wan-source")
    settings = {"precision": "fp16", "opset": 20, "dynamic": (), "parts": ("denoiser",)}
    export(source, _root() / "wan-half", height=16, width=32, frames=3, batch=2, **settings)
    return _root() / "wan-half"
