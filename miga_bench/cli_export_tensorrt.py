"""``export tensorrt``: its options; builds engines of an ONNX export."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, print_json, say
from miga_bench.errors import UserError

SUMMARY = "Build TensorRT engines of an exported denoiser."

EXAMPLES = """\
examples:
  miga-bench export tensorrt wan-onnx                              (for this machine's GPU)
  miga-bench export tensorrt wan-onnx --library tensorrt_rtx --compute-capability 8.9,12.0
                                                                   (for RTX 40 and 50, no GPU needed)
  miga-bench export tensorrt wan-onnx --profile batch=1:4:8,frames=2:21:21
  miga-bench export tensorrt wan-onnx --profile batch=1:2:2,frames=2:21:21 --profile batch=8,frames=21
  miga-bench export tensorrt wan-onnx --weight-streaming           (more weights than GPU memory)
  miga-bench export tensorrt wan-onnx --refittable                 (needs a GPU)
  miga-bench export tensorrt wan-lora-onnx --refit wan-onnx/engines/NAME.engine

DIR is what miga-bench export onnx wrote; engines go to DIR/engines, each with a record. An engine computes
in the precision of the ONNX file, and runs on one kind of GPU and with one version of one library:
tensorrt builds for the GPU it runs on, tensorrt_rtx for GeForce and RTX cards (7.5, 8.0, 8.6, 8.9, 12.0,
12.1) on any machine. A profile gives least, usual and largest batch and frames (NAME=SIZE for one size);
what it leaves out is as in the export. Guidance doubles the batch; where there is none, as at levels that
guidance_from leaves out, a call may have a single row. What is built already is not built again.
Where there is a GPU that an engine is for, it is run once after it was built or refitted, on an input that
the export holds with PyTorch's float32 answer; one that is off by more than 1e-2 (fp32), 2e-2 (fp16) or 1e-1
(bf16) of the largest value is not kept (exit code 1). That input has a window's latents, or the fewest where
windows are long (2): an engine without a profile that takes as many is not compared."""

# options that an engine which is there cannot follow any more, and their attributes
_OF_BUILDING = {
    "--profile": "profiles",
    "--compute-capability": "capabilities",
    "--library": "library",
    "--builder-level": "builder_level",
    "--weight-streaming": "weight_streaming",
    "--refittable": "refittable",
    "--force": "force",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="what export onnx wrote")
    parser.add_argument(
        "--profile",
        metavar="SIZES",
        action="append",
        default=[],
        dest="profiles",
        help="sizes to take, like batch=1:4:8,frames=2:21:21; may be given several times (the export's)",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="X.Y,...",
        type=lambda text: [part.strip() for part in text.split(",")],
        default=[],
        dest="capabilities",
        help="what to build for, an engine each (this machine's GPU)",
    )
    parser.add_argument(
        "--library",
        metavar="NAME",
        help="tensorrt or tensorrt_rtx (tensorrt where it is installed)",
    )
    parser.add_argument(
        "--builder-level",
        metavar="N",
        type=int,
        help="how long to search for fast kernels, 0 to 5 (3)",
    )
    parser.add_argument(
        "--weight-streaming",
        action="store_true",
        help="let weights that do not fit on the GPU stay in main memory",
    )
    parser.add_argument(
        "--refittable", action="store_true", help="let the engine take other weights later"
    )
    parser.add_argument(
        "--refit",
        metavar="ENGINE",
        type=Path,
        help="build nothing: give this refittable engine the weights of DIR",
    )
    parser.add_argument("--force", action="store_true", help="build again what is there")


def run(args: argparse.Namespace) -> int:
    """Build, or refit; print the engines' records, and return the exit code.

    Raises:
        UserError: Wrong input; nothing was built.
        ExportError: The library could not build.
    """
    if args.refit:
        values = {option: getattr(args, name) for option, name in _OF_BUILDING.items()}
        given = [o for o, v in values.items() if v not in (None, []) and v is not False]
        if given:
            raise UserError(
                f"--refit builds nothing, the engine stays what it is: leave {', '.join(given)} out"
            )
    from rich.console import Console

    from miga_bench.export.tensorrt.build import Options, build
    from miga_bench.export.tensorrt.library import load
    from miga_bench.export.tensorrt.refit import refit

    with Console(stderr=True).status("loading") as status:
        if args.refit:
            engines = [refit(args.folder, args.refit, status.update)]
        else:
            options = Options(
                profiles=args.profiles,
                capabilities=args.capabilities,
                weight_streaming=args.weight_streaming,
                refittable=args.refittable,
                force=args.force,
                **({} if args.builder_level is None else {"level": args.builder_level}),
            )
            engines = build(args.folder, load(args.library), options, status.update)
    for engine in engines:
        size = engine["bytes"] / 2**20
        how = "is there already" if engine["reused"] else f"in {engine['build_seconds']:.1f} s"
        away = engine["parity"]
        near = f"not held against PyTorch: {engine['parity_reason']}"
        near = near if away is None else f"{away:.1e} from PyTorch"
        say(f"{engine['engine']}: {size:.1f} MiB, {how}; {near}")
    print_json({"engines": engines})
    return DONE
