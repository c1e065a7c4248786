"""One denoising step for many slots at once, each on its own level.

A solver is a handful of coefficient tables indexed by level. A slot's history (what a multistep
solver remembers) is kept in ``SolverState``, tensors whose first dimension is the slot, so it
travels with the slot through the queue.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from miga_bench.backbones.schedule import Schedule

SolverState = dict[str, Tensor]


def per_slot(table: Tensor, levels: Tensor, like: Tensor) -> Tensor:
    """Look up one number per slot, ``[F, 1, 1, 1]`` ready to multiply latents ``[F, C, H, W]``."""
    numbers = table.to(like.dtype)[levels]
    # elsewhere than on CUDA the copy may read them when they are gone
    numbers = numbers.to(like.device, non_blocking=like.device.type == "cuda")
    return numbers[:, None, None, None]


class Solver(ABC):
    """Takes every slot from its level to the next lower one.

    Attributes:
        schedule: The tables the steps are computed from.
        stochastic: Whether a step draws noise.
    """

    stochastic: bool = False

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def fresh_state(self, latents: Tensor) -> SolverState:
        """Return the state of slots that were never stepped, for latents ``[F, C, H, W]``."""
        return {}

    def clean_prediction(
        self, latents: Tensor, prediction: Tensor, levels: Sequence[int]
    ) -> Tensor:
        """Return the clean latents that a prediction stands for, ``[F, C, H, W]``.

        For flow matching, where the denoiser predicts the velocity, ``x_0 = x - sigma v``; solvers of
        other predictions have their own.

        Args:
            latents: ``[F, C, H, W]``, slot f at ``levels[f]``.
            prediction: The denoiser's output for them, same shape.
            levels: Level of each slot, 0 to T.
        """
        sigma = per_slot(self.schedule.sigma, torch.as_tensor(levels), latents)
        return torch.addcmul(latents, sigma, prediction, value=-1)

    @abstractmethod
    def step(
        self,
        latents: Tensor,
        prediction: Tensor,
        levels: Sequence[int],
        state: SolverState,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Step slots down one level.

        Args:
            latents: ``[F, C, H, W]``, slot f at ``levels[f]``.
            prediction: The denoiser's output for them, same shape.
            levels: Level of each slot before the step, 1 to T.
            state: The slots' state.
            noise: Standard normal ``[F, C, H, W]`` for stochastic solvers.

        Returns:
            The latents one level lower and the slots' new state.
        """


class DDIM(Solver):
    """DDIM for eps prediction (Song et al. 2021, eq. 12 and 16).

    The dynamic rescale of VideoCrafter2 needs no extra term: it is part of the schedule's alpha.

    Args:
        schedule: A variance-preserving schedule.
        eta: 0 is deterministic, 1 adds as much noise as ancestral sampling.
    """

    def __init__(self, schedule: Schedule, eta: float = 1.0) -> None:
        super().__init__(schedule)
        self.stochastic = eta > 0
        alpha, sigma = schedule.alpha, schedule.sigma
        a_bar = 1 - sigma**2
        below = torch.arange(schedule.steps + 1).sub(1).clamp(min=0)
        ratio = (sigma[below] / sigma) ** 2 * (1 - a_bar / a_bar[below])
        fresh = eta * ratio.clamp(min=0).sqrt()
        direction = (sigma[below] ** 2 - fresh**2).clamp(min=0).sqrt()
        # x_0 = (x - sigma eps) / alpha;  x' = alpha' x_0 + direction eps + fresh z
        self.keep = alpha[below] / alpha
        self.toward = direction - self.keep * sigma
        self.fresh = fresh

    def clean_prediction(
        self, latents: Tensor, prediction: Tensor, levels: Sequence[int]
    ) -> Tensor:
        """Return ``x_0 = (x - sigma eps) / alpha``; see ``Solver.clean_prediction``."""
        index = torch.as_tensor(levels)
        sigma = per_slot(self.schedule.sigma, index, latents)
        clean = torch.addcmul(latents, sigma, prediction, value=-1)
        return clean / per_slot(self.schedule.alpha, index, latents)

    def step(
        self,
        latents: Tensor,
        prediction: Tensor,
        levels: Sequence[int],
        state: SolverState,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Step slots down one level; see ``Solver.step``."""
        index = torch.as_tensor(levels)
        out = per_slot(self.keep, index, latents) * latents
        out.addcmul_(per_slot(self.toward, index, latents), prediction)
        if self.stochastic:
            assert noise is not None
            out.addcmul_(per_slot(self.fresh, index, latents), noise)
        return out, state


class FlowEuler(Solver):
    """Euler's method on the flow ODE, ``x' = x + (sigma' - sigma) v``."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.toward = schedule.sigma.diff(prepend=schedule.sigma[:1]).neg()

    def step(
        self,
        latents: Tensor,
        prediction: Tensor,
        levels: Sequence[int],
        state: SolverState,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Step slots down one level; see ``Solver.step``."""
        return torch.addcmul(
            latents, per_slot(self.toward, torch.as_tensor(levels), latents), prediction
        ), state


class UniPC(Solver):
    """UniPC of order 2 for flow matching, B(h) = e^h - 1, predicting x_0 (Zhao et al. 2023, alg. 5, 6).

    With ``lambda = log(alpha / sigma)``, ``h`` the step in lambda and ``r`` the previous step's length in
    units of ``-h`` a step is linear in the slot's history, so predictor and corrector are tables
    over (number of remembered outputs, level). The last step is of order 1.

    State per slot: ``x0`` and ``x0_before``, the last two clean predictions, ``x``, the latent the
    last step started from, and ``history``, how many predictions are remembered (0, 1, 2).
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        steps = schedule.steps
        # Rows: history 0, 1, 2. Columns: level before the step.
        # of x, x0, x0_1
        self.predict = torch.zeros(3, 3, steps + 1, dtype=torch.float64)
        # of x, x_1, x0_1, x0_2, x0
        self.correct = torch.zeros(5, 3, steps + 1, dtype=torch.float64)
        self.correct[0, 0] = 1.0
        for level in range(1, steps + 1):
            for history in range(3):
                self.predict[:, history, level] = self._predictor(level, history)
                if history and level + history <= steps:
                    self.correct[:, history, level] = self._corrector(level, history)

    def _lambda(self, level: int) -> Tensor:
        return torch.log(self.schedule.alpha[level]) - torch.log(self.schedule.sigma[level])

    def _predictor(self, level: int, history: int) -> Tensor:
        """Coefficients of (x, x0, x0 of the step before) in the latent one level lower."""
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        shrink = torch.expm1(self._lambda(level) - self._lambda(level - 1))  # e^-h - 1
        x, x0 = sigma[level - 1] / sigma[level], -alpha[level - 1] * shrink
        if min(2, history + 1, level) == 1 or level == self.schedule.steps:
            return torch.stack([x, x0, torch.zeros_like(x)])
        h = self._lambda(level - 1) - self._lambda(level)
        r = (self._lambda(level + 1) - self._lambda(level)) / h
        slope = -alpha[level - 1] * shrink * 0.5 / r
        return torch.stack([x, x0 - slope, slope])

    def _corrector(self, level: int, history: int) -> Tensor:
        """Coefficients of (x, last x, x0_1, x0_2, x0) in the corrected latent at this level."""
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        h = self._lambda(level) - self._lambda(level + 1)
        shrink = torch.expm1(-h)
        x_1, base = sigma[level] / sigma[level + 1], -alpha[level] * shrink
        zero = torch.zeros_like(h)
        if history == 1:  # the step before was of order 1
            half = 0.5 * base
            return torch.stack([zero, x_1, base - half, zero, half])
        r = (self._lambda(level + 2) - self._lambda(level + 1)) / h
        phi_2 = shrink / -h - 1
        phi_3 = phi_2 / -h - 0.5
        system = torch.stack([torch.ones(2, dtype=h.dtype), torch.stack([r, torch.ones_like(r)])])
        rho = torch.linalg.solve(system, torch.stack([phi_2, 2 * phi_3]) / shrink)
        before, now = base * rho[0] / r, base * rho[1]
        return torch.stack([zero, x_1, base - before - now, before, now])

    def fresh_state(self, latents: Tensor) -> SolverState:
        """Return the state of slots that were never stepped, for latents ``[F, C, H, W]``."""
        empty = torch.zeros_like(latents)
        history = torch.zeros(len(latents), dtype=torch.long)
        return {"x": empty, "x0": empty, "x0_before": empty, "history": history}

    def step(
        self,
        latents: Tensor,
        prediction: Tensor,
        levels: Sequence[int],
        state: SolverState,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Step slots down one level; see ``Solver.step``."""
        level, history = torch.as_tensor(levels), state["history"]

        def mix(table: Tensor, *terms: Tensor) -> Tensor:
            weights = table[:, history, level].to(latents.dtype).to(latents.device)
            out = terms[0] * weights[0, :, None, None, None]
            for weight, term in zip(weights[1:], terms[1:], strict=True):
                out.addcmul_(weight[:, None, None, None], term)
            return out

        x0 = self.clean_prediction(latents, prediction, levels)
        x = mix(self.correct, latents, state["x"], state["x0"], state["x0_before"], x0)
        lower = mix(self.predict, x, x0, state["x0"])
        return lower, {
            "x": x,
            "x0": x0,
            "x0_before": state["x0"],
            "history": (history + 1).clamp(max=2),
        }
