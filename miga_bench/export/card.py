"""The model card of an export folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miga_bench.export.example import example
from miga_bench.export.sidecar import Sidecar


def card(facts: Mapping[str, Any], graphs: Sequence[Sidecar]) -> str:
    """Return the README of an export.

    Args:
        facts: The content of its ``backbone.json``.
        graphs: Its sidecars.
    """
    channels, height, width = facts["latent_shape"]
    first = graphs[0]
    lora = f", the LoRA {first.lora['file']} merged at {first.lora['scale']}" if first.lora else ""
    lines = [
        f"# {facts['name']} as ONNX",
        "",
        f"A model of the {facts['family']} family{lora}, exported by miga-bench"
        f" {first.code['miga_bench']} with torch {first.code['torch']} and onnx {first.code['onnx']}.",
        f"Weights: sha256 {facts['weights_hash']}. The weights' own license holds for these files, too.",
        "",
        f"Every frame has a noise level of its own: `timesteps` is [batch, frames]. Latents are"
        f" {channels} x {height} x {width}, windows {facts['window']} latents.",
        "",
        "| graph | inputs | precision | opset | nodes | largest relative difference from PyTorch |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for graph in graphs:
        inputs = [
            f"`{name}` {port.dtype} {'x'.join(map(str, port.shape))}"
            for name, port in graph.inputs.items()
        ]
        told = [*inputs[:5], f"and {len(inputs) - 5} of state"] if len(inputs) > 5 else inputs
        worst = max((entry["relative"] for entry in graph.parity), default=None)
        parity = graph.parity_reason or f"{worst:.1e} (at most {graph.tolerance:g})"
        lines.append(
            f"| {graph.onnx} | {', '.join(told)} | {graph.precision} | {graph.opset} |"
            f" {sum(graph.operators.values())} | {parity} |"
        )
    lines += [
        "",
        "Beside each graph lies its record (`.json`): shapes, operators, hashes, parity by shape.",
        "",
        '    miga-bench generate "..." --denoiser onnx:FOLDER',
    ]
    denoiser = next((graph for graph in graphs if graph.graph == "denoiser"), None)
    if (
        denoiser and denoiser.precision != "bf16"
    ):  # which ONNX Runtime has no convolutions for on a CPU
        code = example(facts, denoiser.onnx, denoiser.inputs)
        lines += [
            "",
            "The denoiser without miga-bench, in this folder:",
            "",
            "```python",
            code + "```",
        ]
    return "\n".join(lines) + "\n"
