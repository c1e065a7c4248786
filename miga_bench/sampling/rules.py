"""Rules that settings must keep, told in one line when broken."""

from __future__ import annotations

import math

from miga_bench.errors import UserError


def require(holds: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless the rule holds."""
    if not holds:
        raise UserError(message)


def check_common(steps: int, guidance_scale: float, batch: int, length: int | None) -> None:
    """Check what all methods share.

    Raises:
        UserError: A value is out of range.
    """
    require(2 <= steps <= 1000, f"steps is {steps}: it must be from 2 to 1000")
    require(
        math.isfinite(guidance_scale) and guidance_scale >= 0,
        f"guidance_scale is {guidance_scale}: it must be a number of at least 0 (1 turns it off)",
    )
    require(batch >= 0, f"batch is {batch}: it must be at least 1, or 0 to choose from free memory")
    require(length is None or length >= 1, f"{length} latents asked for: at least 1 must be")
