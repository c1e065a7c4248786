"""Train a tiny model from scratch: the verb ``train-tiny``.

Two stages on two CPU cores: the autoencoder on freshly rendered clips, then the denoiser with its
text encoder on latents computed once. A stage whose result is already in ``--out`` is not repeated;
one that was stopped goes on from its last snapshot.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miga_bench.backbones.tiny.stages import Family

SUMMARY = "Train the embedded model from scratch."

EXAMPLES = """\
examples:
  miga-bench train-tiny --quick
  miga-bench generate "a red circle moves right" --backbone train/wan/weights --preset tiny
"""


def _steps(text: str) -> int:
    """Parse how many steps."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps: give 1 or more")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    parser.add_argument(
        "--family",
        choices=("wan", "videocrafter2"),
        default="wan",
        help="which embedded model (wan)",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (train/FAMILY)")
    parser.add_argument(
        "--stage",
        choices=("vae", "latents", "denoiser", "all"),
        default="all",
        help="one stage (all)",
    )
    parser.add_argument("--steps", metavar="N", type=_steps, help="steps of the denoiser, in all")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute")


def run(args: argparse.Namespace) -> int:
    """Train, say how long each stage took, and return the exit code."""
    # here, for the options are read where torch is not
    import torch

    from miga_bench.backbones.tiny.stages import make_latents, train_denoiser, train_vae
    from miga_bench.backbones.tiny.vc2_stages import VIDEOCRAFTER2
    from miga_bench.backbones.tiny.wan_stages import WAN

    family = {"wan": WAN, "videocrafter2": VIDEOCRAFTER2}[args.family]
    config = family.config()
    if args.quick:
        config = family.quick(config)
    if args.steps is not None:
        config = replace(config, denoiser=replace(config.denoiser, steps=args.steps))
    out = args.out or Path("train") / args.family
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[[Family, Any, Path], None]] = {
        "vae": train_vae,
        "latents": make_latents,
        "denoiser": train_denoiser,
    }
    for name, stage in stages.items():
        if args.stage in (name, "all"):
            start = time.monotonic()
            stage(family, config, out)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0
