"""``export triton``: its options."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json

SUMMARY = "Lay an export's denoiser out as a model repository of Triton Inference Server."

EXAMPLES = """\
examples:
  miga-bench export triton tiny-wan-onnx -o models
  tritonserver --model-repository models

Attention of opset 23 runs on a GPU from ONNX Runtime 1.25 on, and on the CPU of a server with an older one:
for that, export small models by export onnx --opset 20; large ones need the newer server."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what export onnx wrote")
    parser.add_argument("-o", "--output", metavar="REPOSITORY", type=Path, required=True)
    parser.add_argument("--name", help="what the server calls it (the backbone's name)")
    parser.add_argument("--force", action="store_true", help="replace a model that exists")


def run(args: argparse.Namespace) -> int:
    """Write the model repository, print its record, and return the exit code."""
    from miga_bench.export.triton import export_triton

    print_json(export_triton(args.folder, args.output, args.name, args.force))
    return DONE
