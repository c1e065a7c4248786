"""Train the encoder behind the embedded scores: ``python -m miga_bench.backbones.tiny.encoder``.

No captions: two frames of one clip are the same, frames of other clips are not (NT-Xent; Chen et
al., SimCLR, ICML 2020). Clips come in threes: one, a near twin of it with one number changed, and
one with that number changed more. Without twins the world's clips differ so much that a network
could tell them apart and not see a hue drift; and of three, the second must be nearer to the first
than the third, so that more drift costs more. Frames are made noisy, soft and blocky, never of
another color. `score_checks` measures what came of it.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import (
    PATTERNS,
    SHAPES,
    TEXTURES,
    random_scene,
)
from miga_bench.backbones.tiny.world import Look
from miga_bench.metrics.networks.tiny import TinyNet

LONGEST = 160  # frames between the two of a pair: the slowest sprite goes once around


@dataclass(frozen=True)
class EncoderConfig:
    """Values of the training; 132 frames a step."""

    seed: int = 0
    steps: int = 300
    groups: int = 22  # of three clips, two frames of each
    rate: float = 4e-3
    decay: float = 1e-4
    temperature: float = 0.1
    margin: float = 0.1  # of cosines, between more and less of a change


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Train the encoder behind the embedded scores.")
    parser.add_argument("--out", type=Path, default=Path("train/tiny_encoder.safetensors"))
    parser.add_argument("--steps", type=int, default=EncoderConfig.steps, help="of the training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    save(train(EncoderConfig(steps=options.steps)), options.out)
    return 0


def train(config: EncoderConfig) -> TinyNet:
    """Train from scratch; the same values give the same weights on the same machine."""
    torch.manual_seed(config.seed)
    net = TinyNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), config.rate, weight_decay=config.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.rate, total_steps=config.steps, pct_start=0.1
    )
    start = time.monotonic()
    for step in range(config.steps):
        rng = random.Random(f"{config.seed} {step}")
        drawn = [siblings(rng) for _ in range(config.groups)]
        frames = degrade(torch.cat([frames for frames, _ in drawn]), rng)
        features = net(frames.contiguous(memory_format=torch.channels_last))
        graded = torch.tensor([more for _, more in drawn])
        loss = contrast(features, config.temperature)
        loss = loss + order(features, graded, config.margin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == config.steps - 1:
            spent = time.monotonic() - start
            print(
                f"step {step}: loss {loss.item():.3f}, {spent:.0f} s", file=sys.stderr, flush=True
            )
    return net.eval()


def save(net: TinyNet, path: Path) -> None:
    """Write the weights in half precision, whole numbers as they are."""
    from safetensors.torch import save_file

    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in net.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def contrast(features: Tensor, temperature: float) -> Tensor:
    """NT-Xent loss of features ``[2 N, D]`` whose neighbors 2 i and 2 i + 1 belong together."""
    unit = F.normalize(features, dim=1)
    logits = unit @ unit.T / temperature
    logits.fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(features)) ^ 1)


def order(features: Tensor, graded: Tensor, margin: float) -> Tensor:
    """Hinge loss of features ``[6 N, D]`` of siblings: a larger change must be farther away.

    Args:
        features: As ``siblings`` orders them.
        graded: Whether the third clip is changed more than the second, bool ``[N]``.
        margin: Least difference of the two cosines.
    """
    unit = F.normalize(features, dim=1).unflatten(0, (-1, 3, 2))
    less = (unit[:, 0] * unit[:, 1]).sum(-1)
    more = (unit[:, 0] * unit[:, 2]).sum(-1)
    return ((more - less + margin).clamp_min(0).mean(1) * graded).mean()


def siblings(rng: random.Random) -> tuple[Tensor, bool]:
    """Draw three looks that differ in one number, and two frames of each.

    Returns:
        Frames [6, 3, 64, 64] in [0, 1], neighbors of one look; and whether the third look is changed
        more than the second, not just otherwise.
    """
    look = world.draw_look(random_scene(rng), rng)
    kind = rng.choice(_KINDS)
    if kind in _NAMED:
        looks = [look, *_renamed(look, kind, rng)]
    else:
        amount = rng.uniform(0, 0.65)
        sign = rng.choice((-1, 1))
        further = amount + rng.uniform(0.2, 0.35)
        looks = [look, *(_CHANGES[kind](look, sign, a) for a in (amount, further))]
    shown = [world.render(one, 1, rng.randrange(LONGEST)) for one in looks for _ in range(2)]
    return torch.cat(shown), kind not in _NAMED


def degrade(frames: Tensor, rng: random.Random) -> Tensor:
    """Make every frame [N, 3, H, W] noisy, soft and blocky by an amount of its own; no new colors."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))

    def amount() -> Tensor:
        return torch.rand(len(frames), 1, 1, 1, generator=generator)

    soft = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    frames = torch.lerp(frames, soft, amount())
    frames = frames + 0.03 * amount() * torch.randn(frames.shape, generator=generator)
    blocky = torch.where(amount() < 0.5, amount(), 0)
    return (frames + blocky * (_quantize(frames) - frames)).clamp(0, 1)


def _quantize(frames: Tensor) -> Tensor:
    """Round the coefficients of 8x8 blocks, the finer the coarser, as a codec does."""
    wave = torch.arange(8.0)
    basis = torch.cos(math.pi / 8 * (wave + 0.5) * wave[:, None]) / 2
    basis[0] /= math.sqrt(2)
    step = 0.03 + 0.03 * (wave + wave[:, None])
    n, c, h, w = frames.shape
    blocks = frames.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    coefficients = ((basis @ blocks @ basis.T) / step).round() * step
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(n, c, h, w)


def _turn(sign: int, amount: float) -> float:
    """A change of hue: from 8 degrees at 0 to 180 at 1."""
    return sign * 8 * 22.5**amount


def _factor(sign: int, amount: float) -> float:
    """A change of size or brightness: from 1.1 at 0 to 1.8 at 1, or its inverse."""
    return math.exp(sign * (0.1 + 0.5 * amount))


Change = Callable[[Look, int, float], Look]
# Numbers that can change by more or less, by a sign and an amount in [0, 1].
_CHANGES: dict[str, Change] = {
    "hue": lambda look, sign, a: replace(look, hue=(look.hue + _turn(sign, a)) % 360),
    "radius": lambda look, sign, a: replace(look, radius=look.radius * _factor(sign, a)),
    "aspect": lambda look, sign, a: replace(look, aspect=look.aspect * _factor(sign, a)),
    "field_hue": lambda look, sign, a: replace(
        look, field_hue=(look.field_hue + _turn(sign, a)) % 360
    ),
    "field_value": lambda look, sign, a: replace(
        look, field_value=look.field_value * _factor(-1, a)
    ),
}
# What can only become something else.
_NAMED = {"shape": SHAPES, "texture": TEXTURES, "pattern": PATTERNS}
# Each as often as it is here: hue is what drifts most, shape is the hardest to see.
_KINDS = ("hue", "hue", "hue", "shape", "shape", *_CHANGES, *_NAMED)


def _renamed(look: Look, kind: str, rng: random.Random) -> list[Look]:
    """Two other names of a kind, at random."""
    waves = None if kind == "shape" else getattr(look, kind)
    now = look.shape if waves is None else waves.kind
    others = rng.sample([name for name in _NAMED[kind] if name != now], 2)
    changed: list[Any] = others if waves is None else [replace(waves, kind=n) for n in others]
    return [replace(look, **{kind: value}) for value in changed]


if __name__ == "__main__":
    sys.exit(main())
