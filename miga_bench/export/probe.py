"""What engines are held against: a small input of the denoiser, and what PyTorch makes of it in float32.

An export measures its graphs in ONNX Runtime on a CPU. That leaves out bfloat16, and says nothing of an engine,
which another library makes of the graph. So the export keeps one row of few frames with its answer, and
whoever builds an engine runs it. It takes about 6 MiB at Wan2.1's 480x832.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from miga_bench.backbones.base import HEADROOM
from miga_bench.backbones.memory import free_bytes
from miga_bench.errors import UserError
from miga_bench.export.graphs import Graph
from miga_bench.export.sidecar import Sidecar

NAME = "denoiser.probe.safetensors"
INPUTS = ("latents", "timesteps", "text", "fps")  # rotary tables follow from the latents
ROUNDED = ("latents", "text")  # to float16, in which they are kept
ANSWER = "prediction"
SEED = 21

Probe = dict[str, Tensor]


def sizes(graph: Graph) -> tuple[dict[str, int] | None, str | None]:
    """Return the sizes of a graph's probe, or why it has none; neither for another graph than a denoiser."""
    if graph.name != "denoiser":
        return None, None
    found = graph.extent.probe()
    if found is None:
        return None, "the one size that the graph takes is too much for PyTorch on a CPU"
    if graph.precision == "bf16":  # the float32 network is loaded for this alone
        wanted = 4 * sum(weight.numel() for weight in graph.module.parameters())
        free = free_bytes(torch.device("cpu"))
        if free is not None and wanted > HEADROOM * free:
            return None, f"no memory was free for {wanted / 2**30:.0f} GiB of weights in float32"
    return found, None


def make(graph: Graph, reference: nn.Module, size: dict[str, int]) -> Probe:
    """Return inputs and answer.

    Args:
        graph: A denoiser's.
        reference: What answers, in float32.
        size: See ``sizes``.
    """
    given = dict(
        zip(graph.shapes, graph.sample(size, torch.Generator().manual_seed(SEED)), strict=True)
    )
    given |= {name: given[name].half().float() for name in ROUNDED if name in given}
    with torch.no_grad():
        answer = reference(*given.values())
    kept = {name: given[name] for name in INPUTS if name in given}
    return {**kept, ANSWER: answer.float()}


def save(probe: Probe, folder: Path) -> None:
    """Write a probe into an export's folder."""
    kinds = {name: torch.float16 if name in ROUNDED else torch.float32 for name in probe}
    # not by save_file, whose files only their owner may read
    content = as_bytes({n: x.to(kinds[n]).contiguous() for n, x in probe.items()})
    (folder / NAME).write_bytes(content)


def load(sidecar: Sidecar) -> Probe:
    """Return the probe of an export, in float32.

    Raises:
        UserError: It cannot be read, or is none of this graph.
    """
    path = sidecar.folder / str(sidecar.probe)
    try:
        kept = load_file(path)
        return {name: kept[name].float() for name in (*_inputs(sidecar), ANSWER)}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{path} is no input and answer of {sidecar.onnx} ({error}): export it again"
        ) from None


def _inputs(sidecar: Sidecar) -> list[str]:
    return [name for name in INPUTS if name in sidecar.inputs]


def relative(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest value."""
    difference = (got.double() - wanted.double()).abs().max()
    return float(difference / wanted.double().abs().max().clamp_min(1e-12))
