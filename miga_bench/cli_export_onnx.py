"""``export onnx``: its options, and the request they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json, say
from miga_bench.export.request import DYNAMIC, PARTS, OnnxRequest

SUMMARY = "Export text encoder, denoiser and autoencoder as ONNX, held against PyTorch."

EXAMPLES = """\
examples:
  miga-bench export onnx tiny-wan -o tiny-wan-onnx
  miga-bench export onnx wan2.1-1.3b --precision bf16 --parts denoiser -o wan-bf16
  miga-bench export onnx tiny-videocrafter2 --frames 16 --dynamic batch -o vc2-onnx
  miga-bench export onnx tiny-wan --lora style.safetensors --lora-scale 0.8 -o styled

The folder holds the graphs, beside each its record (.json: shapes, operators, hashes, parity with PyTorch at
several shapes), the tokenizer, backbone.json and a model card. It is there whole or not at all: a graph that
is further from PyTorch than 1e-4 (fp32) or 5e-3 (fp16) of the largest value is not kept (exit code 1).
Opset 23 is for TensorRT 10.15 and newer and, on a GPU, for ONNX Runtime 1.25 and newer; 20 is for older ones
and small sizes: it has no operator for attention, whose scores are then in memory, 25.8 GB for each row of
Wan2.1-1.3B at 480x832 in fp16.
fp16 and bf16 are the denoiser's; the autoencoder stays in fp32, and text encoders compute in it (large ones of
Wan keep their weights in bf16). bf16 is for TensorRT (export tensorrt), whose engines are held against PyTorch
when they are built; for ONNX Runtime on a GPU take fp16, without which onnx+tensorrt and onnx+tensorrt-rtx open
no graph of opset 23. Text encoder and autoencoder that --parts leaves out come from the model's own weights in
PyTorch."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip() not in ("", "none"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("backbone", metavar="BACKBONE", help="a name, a folder or a Hub id")
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)
    parser.add_argument(
        "--precision", default="fp32", help="fp32, fp16 for GPUs, or bf16 for TensorRT (fp32)"
    )
    parser.add_argument("--opset", metavar="N", type=int, default=23, help="23 or 20 (23)")
    parser.add_argument("--frames", metavar="N", type=int, help="latents of a window (its own)")
    parser.add_argument(
        "--batch", metavar="N", type=int, default=2, help="usual rows of a call (2)"
    )
    parser.add_argument("--height", metavar="N", type=int, help="video height in pixels (its own)")
    parser.add_argument("--width", metavar="N", type=int, help="video width in pixels (its own)")
    parser.add_argument(
        "--dynamic",
        metavar="NAMES",
        type=_names,
        default=DYNAMIC,
        help="sizes that may vary from call to call, or none (batch,frames)",
    )
    parser.add_argument(
        "--parts",
        metavar="NAMES",
        type=_names,
        default=PARTS,
        help="what to export (denoiser,text,vae)",
    )
    parser.add_argument("--lora", metavar="FILE", type=Path, help="merge this LoRA first")
    parser.add_argument("--lora-scale", metavar="X", type=float, default=1.0, help="how much (1)")
    parser.add_argument("--force", action="store_true", help="replace a folder that exists")


def run(args: argparse.Namespace) -> int:
    """Export, print what was written and how near it is to PyTorch, and return the exit code.

    Raises:
        UserError: Wrong input; nothing was written.
    """
    request = OnnxRequest(
        backbone=args.backbone,
        output=args.output,
        precision=args.precision,
        opset=args.opset,
        frames=args.frames,
        batch=args.batch,
        height=args.height,
        width=args.width,
        dynamic=args.dynamic,
        parts=args.parts,
        lora=args.lora,
        lora_scale=args.lora_scale,
        overwrite=args.force,
    )
    request.check()  # before torch is imported
    from miga_bench.export.onnx_folder import export_onnx

    print_json(export_onnx(request, say))
    return DONE
