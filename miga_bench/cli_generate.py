"""The verb ``generate``: its options, the request they make, and what is said of the video."""

from __future__ import annotations

import argparse
from pathlib import Path

from miga_bench.cli_common import DONE, FAILED, one_line, print_json, say
from miga_bench.errors import counted
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.facts import ExportFacts
from miga_bench.harness.request import GenerateRequest, PromptAt

SUMMARY = "Make one video."

EXAMPLES = """\
examples:
  miga-bench generate "a red circle moves right on a blue field" --frames 120 --seed 7
  miga-bench generate "a red circle moves right" --then 60:"a red circle moves up" -o turn.mp4
  miga-bench generate "a green square moves up" --method fifo --set steps=32 --force
  miga-bench generate "a yellow star moves left" --preset anchored --endless
  miga-bench generate "a yellow star moves left" --denoiser onnx:tiny-wan-onnx     (see miga-bench export)

Beside the video lie a contact sheet (.png) and a record of settings, versions and cost (.json)."""


# What others have and we have not, and what there is instead.
INSTEAD = {
    "--image": "models are text-to-video, so say in PROMPT what the video shows",
    "--lora": "miga-bench export onnx --lora FILE merges one into a model, for --denoiser onnx:FOLDER",
    "--fps": "a video has its model's frame rate",
    "--crf": "--lossless keeps every pixel value",
}


def _prompt_at(text: str) -> tuple[int, str]:
    """Parse ``FRAME:PROMPT``."""
    frame, colon, prompt = text.partition(":")
    if not colon or not frame.strip().isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FRAME:PROMPT: give a frame from 1 on and a text, like 150:'a blue circle'"
        )
    return int(frame), prompt


def _assignment(text: str) -> tuple[str, str]:
    """Parse ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE: give both, like steps=32")
    return name.strip(), value.strip()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.set_defaults(instead=INSTEAD)
    parser.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    video = parser.add_argument_group("video")
    video.add_argument(
        "--then",
        metavar="FRAME:PROMPT",
        type=_prompt_at,
        action="append",
        default=[],
        help="from that video frame on, another prompt; may be given several times",
    )
    video.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    video.add_argument(
        "--frames", metavar="N", type=int, help="video frames to make (300; of short one clip)"
    )
    video.add_argument("--endless", action="store_true", help="go on until stopped")
    video.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="the video's seed; -1 is one like others (0)",
    )
    video.add_argument("--height", metavar="N", type=int, help="frame height in pixels")
    video.add_argument("--width", metavar="N", type=int, help="frame width in pixels")
    how = parser.add_argument_group("method")
    how.add_argument(
        "--method",
        metavar="NAME",
        default="miga",
        help="see list methods, or module.Class of a sampler of your own (miga)",
    )
    how.add_argument(
        "--preset",
        metavar="NAME",
        help="a named set of settings; see list presets (tiny on embedded models, else paper)",
    )
    how.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_assignment,
        action="append",
        default=[],
        dest="settings",
        help="one setting, such as steps, zigzag or guidance_scale; see list methods",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--backbone",
        metavar="NAME|PATH",
        help="tiny-wan or tiny-videocrafter2 (in the package), wan2.1-1.3b, videocrafter2, a folder,"
        " organization/repository on the Hub, or VideoCrafter2's model.ckpt (tiny-wan, or what was exported)",
    )
    model.add_argument(
        "--denoiser",
        metavar="WHAT",
        help="torch, compile, onnx:FOLDER, onnx+PROVIDER:FOLDER (cpu, cuda, tensorrt, tensorrt-rtx) or"
        " tensorrt:FOLDER; see miga-bench export --help (torch; for long videos of an embedded model on a"
        " CPU an export, which is made once)",
    )
    model.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps")
    model.add_argument(
        "--dtype",
        metavar="NAME",
        help="float32, bfloat16 or float16, or fp32, bf16, fp16 (float32 on a CPU; on a GPU bfloat16 for Wan,"
        " if it has that, and float16 for VideoCrafter2)",
    )
    model.add_argument(
        "--offload", action="store_true", help="keep only the part in use on the GPU"
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("out.mp4"), help="out.mp4"
    )
    files.add_argument("--force", action="store_true", help="replace files that exist")
    files.add_argument("--lossless", action="store_true", help="keep every pixel value")
    files.add_argument("--quiet", action="store_true", help="no progress")


def asked(args: argparse.Namespace) -> GenerateRequest:
    """Return what the options ask for.

    Raises:
        UserError: There is no such denoiser.
    """
    return GenerateRequest(
        prompts=[PromptAt(args.prompt), *(PromptAt(text, frame) for frame, text in args.then)],
        output=args.output,
        method=args.method,
        backbone=args.backbone or _of_export(args.denoiser) or "tiny-wan",
        denoiser=args.denoiser,
        frames=args.frames,
        endless=args.endless,
        seed=args.seed,
        preset=args.preset,
        overrides=dict(args.settings),
        negative_prompt=args.negative_prompt,
        device=args.device,
        dtype=args.dtype,
        offload=args.offload,
        height=args.height,
        width=args.width,
        overwrite=args.force,
        lossless=args.lossless,
    )


def _of_export(denoiser: str | None) -> str | None:
    """Return the name of the backbone that an export is of."""
    root = None if denoiser is None else DenoiserChoice.parse(denoiser).root
    return None if root is None else ExportFacts.read(root).name


def run(args: argparse.Namespace) -> int:
    """Make the video, say what became of it, and return the exit code.

    Raises:
        UserError: Wrong input; nothing was made.
    """
    request = asked(args)
    request.check()  # before torch is imported: wrong input is answered at once
    from miga_bench.harness.generate import generate
    from miga_bench.harness.progress import ProgressBar
    from miga_bench.harness.stop import StopRequested

    try:
        with ProgressBar(quiet=args.quiet) as bar:
            result = generate(request, bar)
    except StopRequested as stop:  # before the first frame
        say("stopped: nothing was written")
        return 128 + stop.signal
    frames = counted(result.frames, "frame")
    kept = f"{request.output} keeps {frames}" if result.frames else "nothing was kept"
    if result.status == "failed":
        say(f"{one_line(result.error)}; {kept}")
    elif result.status == "stopped":
        say(f"stopped: {kept}")
    elif not args.quiet:
        seconds = result.record["cost"]["total_seconds"]
        say(f"{request.output}: {frames} in {seconds:.0f} s; {request.contact_sheet}")
    print_json(result.record)
    if args.debug and result.error is not None:
        raise result.error
    return {"done": DONE, "failed": FAILED}.get(result.status, 128 + (result.signal or 2))
