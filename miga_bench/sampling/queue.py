"""The queue: slots with their latents, levels, frame numbers and solver state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miga_bench.backbones.solvers import Solver, SolverState


@dataclass
class Queue:
    """Slots in order, slot 0 at the front (cleanest).

    Attributes:
        latents: ``[L, C, H, W]`` float32.
        levels: Level of each slot.
        frames: Frame number of each slot.
        state: Solver state, tensors ``[L, ...]``.
    """

    latents: Tensor
    levels: list[int]
    frames: list[int]
    state: SolverState

    @classmethod
    def fresh(
        cls, latents: Tensor, levels: Sequence[int], frames: Sequence[int], solver: Solver
    ) -> Queue:
        """Return slots without a history."""
        return cls(latents, list(levels), list(frames), solver.fresh_state(latents))

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, slots: slice) -> Queue:
        """Return a part of the slots; its tensors are views."""
        return Queue(
            self.latents[slots],
            self.levels[slots],
            self.frames[slots],
            {name: value[slots] for name, value in self.state.items()},
        )

    def __add__(self, other: Queue) -> Queue:
        """Return this queue with the other one behind it."""
        return Queue.join([self, other])

    @classmethod
    def join(cls, parts: Sequence[Queue]) -> Queue:
        """Return parts, at least one, as one queue."""
        return cls(
            torch.cat([part.latents for part in parts]),
            [level for part in parts for level in part.levels],
            [frame for part in parts for frame in part.frames],
            {name: torch.cat([part.state[name] for part in parts]) for name in parts[0].state},
        )

    def pop(self, count: int) -> Queue:
        """Remove ``count`` slots from the front and return them."""
        front, rest = self[:count], self[count:]
        # A view would keep the whole tensor of the pass alive for as long as the caller holds it.
        front.latents = front.latents.clone()
        front.state = {name: value.clone() for name, value in front.state.items()}
        self.latents, self.levels, self.frames, self.state = (
            rest.latents,
            rest.levels,
            rest.frames,
            rest.state,
        )
        return front

    def write(self, slots: slice, part: Queue) -> None:
        """Replace some of the slots; tensors that a running pass holds are left as they were."""
        if (slots.start, slots.stop) == (0, len(self)):
            self.latents, self.levels, self.state = part.latents, list(part.levels), part.state
            return
        self.latents = torch.cat(
            [self.latents[: slots.start], part.latents, self.latents[slots.stop :]]
        )
        self.levels[slots] = part.levels
        self.state = {
            name: torch.cat([value[: slots.start], part.state[name], value[slots.stop :]])
            for name, value in self.state.items()
        }
