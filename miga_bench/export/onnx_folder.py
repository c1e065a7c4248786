"""A backbone as a folder of ONNX graphs: all of it, or nothing."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from miga_bench.backbones import load_backbone
from miga_bench.backbones.loaded import LoadedBackbone
from miga_bench.backbones.prompt_text import clean_prompt
from miga_bench.errors import ExportError, UserError
from miga_bench.export.card import card
from miga_bench.export.families import (
    decoder_graphs,
    denoiser_graph,
    facts,
    frame_tokens,
    text_graph,
)
from miga_bench.export.graphs import Extent, Graph
from miga_bench.export.lora import Lora
from miga_bench.export.onnx_graph import expected, write_graph
from miga_bench.export.request import FACTS, FACTS_FORMAT, OnnxRequest
from miga_bench.export.sidecar import Sidecar, sha256

MOST_ROWS = 4  # two windows with guidance; engines take longer batches in several calls
SPOKEN = ("a red circle moves right on a blue field", "", "Wind, rain &amp; snow: 3 cats!")


def export_onnx(
    request: OnnxRequest, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Export a backbone.

    Args:
        request: What, how, and where.
        say: Hears of each graph that is done.

    Returns:
        What was written: the folder, and graph by graph opset, operators, bytes and parity.

    Raises:
        UserError: Wrong input; nothing was written.
        ExportError: A graph is not what it was exported from; nothing was kept.
        OSError: The disk is full; nothing was kept.
    """
    request.check()
    lora = Lora(request.lora, request.lora_scale) if request.lora else None
    backbone: Any = load_backbone(
        request.backbone,
        device="cpu",
        dtype=request.precision,
        height=request.height,
        width=request.width,
    )
    if not isinstance(backbone, LoadedBackbone):
        raise UserError(f"{request.backbone} is no model in PyTorch: it cannot be exported")

    def change(network: nn.Module) -> None:
        if lora is not None:
            lora.merge(getattr(network, "transformer", network))

    change(backbone.denoiser.network)
    known = facts(backbone)
    told = {key: known[key] for key in ("name", "family", "weights_hash")}
    merged = None
    if lora is not None:
        merged = {"file": lora.path.name, "sha256": sha256(lora.path), "scale": str(lora.scale)}
        told["weights_hash"] = f"{told['weights_hash']}+{merged['sha256'][:16]}*{lora.scale:g}"
    with staged(request.output, request.overwrite) as folder:
        written = []
        for graph in _graphs(backbone, request, change):
            sidecar = write_graph(graph, expected(graph), folder, request.opset, told, merged)
            written.append(sidecar)
            worst = max((entry["relative"] for entry in sidecar.parity), default=None)
            measured = sidecar.parity_reason or f"{worst:.1e} from PyTorch"
            say(f"{graph.name}: {sum(sidecar.operators.values())} nodes, {measured}")
        if "text" in request.parts:
            _write_tokenizer(backbone.text, folder / "tokenizer")
        known = {"format": FACTS_FORMAT, **known, **told}
        (folder / FACTS).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(known, written), encoding="utf-8")
    return _summary(request.output, written)


def _graphs(backbone: Any, request: OnnxRequest, change: Callable[..., None]) -> Iterator[Graph]:
    frames = request.frames or backbone.window
    # no sampler that runs on an export asks for more than a window, guidance frames included
    extent = Extent(
        {"batch": 1, "frames": min(2, frames)},
        {"batch": request.batch, "frames": frames},
        {"batch": max(MOST_ROWS, request.batch), "frames": max(frames, backbone.window)},
        request.dynamic,
        frame_tokens(backbone),
    )
    if "denoiser" in request.parts:
        yield denoiser_graph(backbone, request.precision, extent, change)
    if "text" in request.parts:
        yield text_graph(backbone)
    if "vae" in request.parts:
        yield from decoder_graphs(backbone)


def _write_tokenizer(text: Any, folder: Path) -> None:
    """Write the tokenizer as one file that the plain library reads, and make sure that it reads it so."""
    from tokenizers import Tokenizer

    text.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    if text.plain is not None:
        text.with_marks().save(str(path))
    if not path.is_file():
        raise ExportError(
            "the tokenizer cannot be written as tokenizer.json: it is not of a fast kind"
        )
    plain = Tokenizer.from_file(str(path))
    plain.no_truncation()
    plain.no_padding()
    for prompt in SPOKEN:
        if plain.encode(clean_prompt(prompt)).ids != text.spell(clean_prompt(prompt)):
            raise ExportError(
                f"the tokenizer written reads {prompt!r} otherwise than the model's own: fetch the model's"
                " tokenizer again"
            )


def _summary(folder: Path, written: list[Sidecar]) -> dict[str, Any]:
    graphs = {
        sidecar.graph: {
            "opset": sidecar.opset,
            "precision": sidecar.precision,
            "nodes": sum(sidecar.operators.values()),
            "bytes": sum((folder / name).stat().st_size for name in sidecar.sha256),
            "parity": max((entry["relative"] for entry in sidecar.parity), default=None),
            "tolerance": sidecar.tolerance,
        }
        for sidecar in written
    }
    return {"folder": str(folder), "graphs": graphs}


@contextmanager
def staged(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside ``output`` that becomes it at the end, or goes away if anything fails.

    What is there already goes when the new one is whole, and stays if that fails.
    """
    output = output.resolve()  # through a link to what it names
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    part, old = (output.with_name(f".{output.name}.{mark}.{end}") for end in ("part", "old"))
    try:
        part.mkdir()
        yield part
        if output.exists() and overwrite:
            output.replace(old)
        try:
            part.replace(output)
        except OSError:
            if old.exists():
                old.replace(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
