"""An export's denoiser as a model repository of Triton Inference Server.

The layout is ``REPOSITORY/NAME/config.pbtxt`` and ``REPOSITORY/NAME/1/model.onnx``. Rotary tables have no
batch of their own and latents' frames vary, so the batch is a dimension like any other
(``max_batch_size: 0``): a client sends the windows of a pass in one request.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnx

from miga_bench.errors import UserError
from miga_bench.export.attention import opset_20_would_do
from miga_bench.export.onnx_folder import staged
from miga_bench.export.request import check_replaceable
from miga_bench.export.sidecar import Port, Sidecar

_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}
_ATTENTION = (
    "# Attention runs on a GPU from ONNX Runtime 1.25 on: a server with an older one computes it on the CPU",
    "# whatever the instance group says; {remedy}",
)


def export_triton(
    folder: Path, repository: Path, name: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a model repository, or add a model to one.

    Args:
        folder: The export.
        repository: Where models lie.
        name: What the server calls this one; None is the backbone's name.
        overwrite: Replace a model of that name.

    Returns:
        The model's name, folder and files.

    Raises:
        UserError: The export is not whole, the name is none, or there is such a model.
    """
    sidecar = Sidecar.read(folder, "denoiser")
    sidecar.check()
    if sidecar.precision == "bf16":
        raise UserError(
            f"{folder} is in bf16, of which ONNX Runtime lacks operators: export in fp16 for a server"
        )
    name = name or re.sub(r"[^\w.-]+", "-", str(sidecar.backbone["name"])).strip("-.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name {name!r}: it must be made of letters, digits, '-', '_' and '.'")
    model = repository / name
    if model.exists():
        if not overwrite:
            raise UserError(f"{model} exists: add --force to replace it, or give another --name")
        ours = all((model / file).is_file() for file in ("config.pbtxt", "denoiser.json"))
        written = ("config.pbtxt", "denoiser.json", "1/model.onnx", "1/*.onnx.data")
        check_replaceable(model, ours, written, "--name")
    with staged(model, overwrite) as part:
        version = part / "1"
        version.mkdir()
        _copy(sidecar, version)
        (part / "config.pbtxt").write_text(config(sidecar, name), encoding="utf-8")
        shutil.copyfile(sidecar.file, part / "denoiser.json")
    files = sorted(str(file.relative_to(model)) for file in model.rglob("*") if file.is_file())
    return {"model": name, "folder": str(model), "files": files}


def _copy(sidecar: Sidecar, version: Path) -> None:
    """Copy graph and weights; weights keep the names that the graph calls them by.

    Hard links would save the room, but ONNX refuses weights that have another name, too.
    """
    shutil.copyfile(sidecar.path, version / "model.onnx")
    for name in sidecar.external_data:
        shutil.copyfile(sidecar.folder / name, version / name)
    onnx.checker.check_model(str(version / "model.onnx"))


def config(sidecar: Sidecar, name: str) -> str:
    """Return the ``config.pbtxt`` of a graph."""
    short = opset_20_would_do(sidecar)
    remedy = "export with --opset 20 for that" if short else "take a newer one"
    parts = [
        f"# {sidecar.backbone['name']}, {sidecar.precision}, opset {sidecar.opset},"
        f" sha256 {sidecar.identity[:16]}",
        *(line.format(remedy=remedy) for line in _ATTENTION if sidecar.operators.get("Attention")),
        f'name: "{name}"',
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        *(_port("input", key, port) for key, port in sidecar.inputs.items()),
        *(_port("output", key, port) for key, port in sidecar.outputs.items()),
        "instance_group [{ count: 1, kind: KIND_AUTO }]",
    ]
    return "\n".join(parts) + "\n"


def _port(kind: str, name: str, port: Port) -> str:
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in port.shape)
    return f'{kind} [{{ name: "{name}", data_type: {_TYPES[port.dtype]}, dims: [ {dims} ] }}]'
