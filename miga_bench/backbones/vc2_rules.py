"""What a VideoCrafter2 model may be asked, whatever runs its networks: they themselves or exported graphs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import get_args

from miga_bench.backbones.schedule import Grid, Schedule, ddpm_schedule
from miga_bench.errors import Notice, UserError

TRAINING_STEPS = 1000


def check_answers(name: str, grid: str, fps: float, fps_range: Sequence[float]) -> None:
    """Check what a reading of the model answers; warn of a rate that the network does not know.

    Args:
        name: The model's.
        grid: Training steps that the levels stand at.
        fps: Frame rate that the network is told.
        fps_range: Lowest and highest rate the network knows.

    Raises:
        UserError: The grid or the rate is impossible.
    """
    if grid not in get_args(Grid):
        raise UserError(f"unknown grid {grid!r}; there are {', '.join(get_args(Grid))}")
    if not fps > 0:
        raise UserError(f"fps is {fps}; the network must be told a rate above 0")
    lowest, highest = fps_range
    if not lowest <= fps <= highest:
        warnings.warn(
            f"{name} knows frame rates from {lowest:g} to {highest:g} and is told fps {fps:g}: "
            "expect motion it was not trained on",
            Notice,
            stacklevel=4,
        )


def schedule_of(name: str, steps: int, grid: Grid, rescale: bool) -> Schedule:
    """Return the model's variance-preserving schedule, see ``ddpm_schedule``.

    Raises:
        UserError: The training steps are not enough, too many, or no steps of the stock grid.
    """
    if not 2 <= steps <= TRAINING_STEPS:
        raise UserError(f"steps is {steps}; {name} samples in 2 to {TRAINING_STEPS}")
    return ddpm_schedule(steps, grid, rescale)
