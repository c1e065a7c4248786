"""Train a tiny model from scratch: the verb ``train-tiny``.

Two stages on two CPU cores: the autoencoder on freshly rendered clips, then the denoiser with its
text encoder on latents computed once. A stage whose result is already in ``--out`` is not repeated;
one that was stopped goes on from its last snapshot. The folder says in ``training.json`` what it is trained
with, and is refused for anything else but another number of the denoiser's steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench.errors import UserError

if TYPE_CHECKING:
    from miga_bench.backbones.tiny.stages import Family

SUMMARY = "Train the embedded model from scratch."

EXAMPLES = """\
examples:
  miga-bench train-tiny --quick --out train/quick
  miga-bench train-tiny
  miga-bench generate "a red circle moves right" --backbone train/wan/weights --preset tiny
"""


CONFIGURATION = "training.json"
NEEDS = {"vae": (), "latents": ("vae",), "denoiser": ("vae", "latents")}
LEAVES = {"vae": "vae.pt", "latents": "latents/latents-*.pt"}


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


def check_folder(out: Path, stage: str, config: Any) -> None:
    """Refuse a folder of another training, or one without what a single stage begins with.

    Raises:
        UserError: It is one.
    """
    for before in NEEDS.get(stage, ()):
        if not any(out.glob(LEAVES[before])):
            raise UserError(
                f"{out} has no {LEAVES[before]}, which --stage {stage} begins with: run --stage {before}"
                " first, or leave --stage out"
            )
    path = out / CONFIGURATION
    if not path.exists():
        return
    try:
        there = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): give another --out") from None
    wanted = _flat(json.loads(json.dumps(asdict(config))))
    for name in wanted:
        if name != "denoiser.steps" and there.get(name) != wanted[name]:
            raise UserError(
                f"{out} holds a training with {name} {there.get(name)}, not {wanted[name]}: give another"
                " --out, or the options it was begun with"
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with ``part.name`` for the names of its parts."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": one for key, one in inner} or {name: value}
    return flat


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
    check_folder(out, args.stage, config)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIGURATION).write_text(json.dumps(asdict(config), indent=1) + "\n")
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
