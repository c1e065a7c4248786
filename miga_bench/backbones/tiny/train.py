"""Train a tiny model from scratch: ``python -m miga_bench.backbones.tiny.train``.

Two stages on two CPU cores: the autoencoder on freshly rendered clips, then the denoiser with its
text encoder on latents computed once. A stage whose result is already in ``--out`` is not repeated;
one that was stopped goes on from its last snapshot.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from miga_bench.backbones.tiny.stages import Family, make_latents, train_denoiser, train_vae
from miga_bench.backbones.tiny.vc2_stages import VIDEOCRAFTER2
from miga_bench.backbones.tiny.wan_stages import WAN
from miga_bench.errors import close_names, plainly

FAMILIES = {"wan": WAN, "videocrafter2": VIDEOCRAFTER2}


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no guessing of abbreviated options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see miga-bench train-tiny --help)\n")


def _steps(text: str) -> int:
    """Parse how many steps."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps: give 1 or more")
    return int(text)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options; what is wrong with them is one line, and exit code 2."""
    parser = _Parser(
        prog="miga-bench train-tiny",
        description="Train a tiny model from scratch.",
        allow_abbrev=False,
    )
    parser.add_argument("--family", choices=tuple(FAMILIES), default="wan")
    parser.add_argument("--out", type=Path, help="folder to write, by default train/FAMILY")
    parser.add_argument("--quick", action="store_true", help="smoke run of a minute")
    parser.add_argument(
        "--stage", choices=("vae", "latents", "denoiser", "all"), default="all", help="one stage"
    )
    parser.add_argument("--steps", type=_steps, help="steps of the denoiser, in all")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = parser._option_string_actions
        near = close_names(unknown[0].split("=")[0], known, most=1)
        parser.error(f"no option {unknown[0]}" + (f": did you mean {near[0]}?" if near else ""))
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _options(arguments)
    family = FAMILIES[options.family]
    config = family.config()
    if options.quick:
        config = family.quick(config)
    if options.steps is not None:
        config = replace(config, denoiser=replace(config.denoiser, steps=options.steps))
    out = options.out or Path("train") / options.family
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[[Family, Any, Path], None]] = {
        "vae": train_vae,
        "latents": make_latents,
        "denoiser": train_denoiser,
    }
    for name, stage in stages.items():
        if options.stage in (name, "all"):
            start = time.monotonic()
            stage(family, config, out)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(plainly(main))
