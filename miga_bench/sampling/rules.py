"""Rules that settings must keep, told in one line when broken."""

from __future__ import annotations

import math
import typing

from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError
from miga_bench.sampling.base import CommonSettings, PromptSchedule


def require(holds: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless the rule holds."""
    if not holds:
        raise UserError(message)


def refuse_cache(s: CommonSettings, method: str, why: str) -> None:
    """Refuse the cache where a method has no use for it.

    Raises:
        UserError: It is on.
    """
    require(
        not s.cache,
        f"cache is {s.cache:g}: {method} {why}; leave it out, or use short, fifo or miga",
    )


def refuse_shared_cache(threshold: float, shared: bool) -> None:
    """Refuse the cache where several processes make one video, over which its entries would be spread.

    Raises:
        UserError: It is on.
    """
    require(
        not (threshold and shared),
        f"cache is {threshold:g}: processes that make a video together (run.window_parallel) do not share one;"
        " leave cache out, or let each make its own",
    )


def check_cache(threshold: float, backbone: Backbone) -> None:
    """Refuse a cache where the denoiser cannot have one.

    Raises:
        UserError: It is compiled or exported, or shared with other processes.
    """
    if not backbone.can_cache:
        raise UserError(
            f"cache needs an uncompiled PyTorch denoiser, which {backbone.name} does not have here: leave cache"
            " out"
        )
    refuse_shared_cache(threshold, backbone.team is not None)


def refuse_changes(prompts: PromptSchedule, method: str, length: int) -> None:
    """Refuse texts that change where a method makes its video as one clip.

    Args:
        prompts: The text over the video.
        method: For the message.
        length: Latents to make; a text that begins after them does not count.

    Raises:
        UserError: A later text begins within the video.
    """
    require(
        all(not 0 < start < length for start in prompts.starts),
        f"{method} makes the whole video under one prompt, which cannot change on the way: "
        "give one prompt, or use fifo, scaling-noise or miga",
    )


def check_common(s: CommonSettings, length: int | None) -> None:
    """Check what all methods share.

    Raises:
        UserError: A value is out of range.
    """
    require(2 <= s.steps <= 1000, f"steps is {s.steps}: it must be from 2 to 1000")
    require(
        math.isfinite(s.guidance_scale) and s.guidance_scale >= 0,
        f"guidance_scale is {s.guidance_scale}: it must be a number of at least 0 (1 turns it off)",
    )
    require(
        0 <= s.guidance_from <= s.steps,
        f"guidance_from is {s.guidance_from}: it must be a level from 0 to the {s.steps} steps",
    )
    require(
        s.guidance_to is None or s.guidance_from <= s.guidance_to <= s.steps,
        f"guidance_to is {s.guidance_to}: it must be a level from guidance_from's {s.guidance_from} to the "
        f"{s.steps} steps (guidance_scale=1 leaves guidance out)",
    )
    require(
        s.batch >= 0, f"batch is {s.batch}: it must be at least 1, or 0 to choose from free memory"
    )
    require(
        math.isfinite(s.cache) and s.cache >= 0,
        f"cache is {s.cache}: it must be a finite number of at least 0 (0 turns it off)",
    )
    require(length is None or length >= 1, f"{length} latents asked for: at least 1 must be")
    for name, kind in typing.get_type_hints(type(s)).items():
        if typing.get_origin(kind) is typing.Literal:
            value, choices = getattr(s, name), typing.get_args(kind)
            require(
                value in choices,
                f"{name} is {value!r}: it must be one of {', '.join(map(str, choices))}",
            )
