"""The verb ``export``: its formats, each a module with options of its own."""

from __future__ import annotations

from miga_bench import cli_export_onnx, cli_export_tensorrt, cli_export_triton

SUMMARY = "Write a model as graphs that run without PyTorch."

EXAMPLES = """\
examples:
  miga-bench export onnx tiny-wan -o tiny-wan-onnx
  miga-bench generate "a red circle moves right" --denoiser onnx:tiny-wan-onnx
  miga-bench export tensorrt tiny-wan-onnx
  miga-bench generate "a red circle moves right" --denoiser tensorrt:tiny-wan-onnx --device cuda
  miga-bench export triton tiny-wan-onnx -o models"""

FORMATS = {
    "onnx": cli_export_onnx,
    "tensorrt": cli_export_tensorrt,
    "triton": cli_export_triton,
}
