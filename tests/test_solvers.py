"""Solvers agree with diffusers' schedulers, and many slots at once with one at a time."""

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from torch.overrides import TorchFunctionMode

from miga_bench.backbones.schedule import Schedule, ddpm_schedule, flow_schedule
from miga_bench.backbones.solvers import DDIM, FlowEuler, UniPC, per_slot
from miga_bench.errors import UserError

STEPS = 12


def network(x, t):
    return torch.sin(3 * x + t / 300)


def walk(solver, x, noise=None):
    """Step one latent from pure noise to clean."""
    schedule, state = solver.schedule, solver.fresh_state(x)
    for level in range(schedule.steps, 0, -1):
        prediction = network(x, float(schedule.timesteps[level]))
        x, state = solver.step(x, prediction, [level], state, noise)
    return x


def test_unipc_is_diffusers_unipc():
    reference = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    reference.set_timesteps(STEPS)
    sigma = reference.sigmas.double().flip(0)
    timesteps = torch.cat([reference.timesteps.float(), torch.zeros(1)]).flip(0)
    solver = UniPC(Schedule(STEPS, timesteps, 1 - sigma, sigma))
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = x
    for t in reference.timesteps:
        expected = reference.step(network(expected, float(t)), t, expected).prev_sample
    torch.testing.assert_close(walk(solver, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_diffusers_ddim(eta):
    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
    )
    reference.set_timesteps(10)
    solver = DDIM(ddpm_schedule(10, grid="stock"), eta)
    assert solver.schedule.timesteps[1:].flip(0).tolist() == reference.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 1, 2, 3, 3, generator=generator)
    expected = x
    for t in reference.timesteps:
        expected = reference.step(
            network(expected, float(t)), t, expected, eta=eta, variance_noise=z if eta else None
        ).prev_sample
    torch.testing.assert_close(walk(solver, x, z), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "near"), [(64, "50 or 100"), (3, "2 or 4"), (1000, "500,")])
def test_the_stock_grid_takes_steps_that_it_has(steps, near):
    """It was cut off after as many: 64 steps began at training step 946 of 1000."""
    with pytest.raises(UserError, match=rf"steps is {steps}: .*use {near}"):
        ddpm_schedule(steps, "stock")
    for known in (2, 50, 500):
        assert ddpm_schedule(known, "stock").timesteps[1:].tolist() == [
            float(t + 1) for t in range(0, 1000, 1000 // known)
        ]


def test_the_rescale_falls_to_seven_tenths_within_400_training_steps():
    plain, scaled = ddpm_schedule(1000), ddpm_schedule(1000, rescale=True)
    assert torch.equal(scaled.sigma, plain.sigma), "the noise is not rescaled"
    share = scaled.alpha / plain.alpha
    known = {1: 1.0, 200: 1 - 0.3 * 199 / 399, 400: 0.7, 401: 0.7, 1000: 0.7}
    assert share[list(known)].tolist() == pytest.approx(list(known.values()))


def test_the_rescale_is_undone_at_clean_steps():
    # A network that knows the noise must lead back to the clean latent, rescale or not.
    schedule = ddpm_schedule(STEPS, rescale=True)
    solver = DDIM(schedule, eta=0.0)
    generator = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, 1, 2, 3, 3, generator=generator)
    x, state = schedule.add_noise(clean, [STEPS], eps), {}
    for level in range(STEPS, 0, -1):
        x, state = solver.step(x, eps, [level], state)
    torch.testing.assert_close(x, schedule.add_noise(clean, [0], eps), rtol=1e-4, atol=1e-4)


def test_euler_follows_a_straight_flow_exactly():
    schedule = flow_schedule(STEPS, 3.0)
    generator = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, 1, 2, 3, 3, generator=generator)
    x, solver = schedule.add_noise(clean, [STEPS], eps), FlowEuler(schedule)
    for level in range(STEPS, 0, -1):
        x, _ = solver.step(x, eps - clean, [level], {})
    torch.testing.assert_close(x, clean)


@pytest.mark.parametrize(
    "solver",
    [
        UniPC(flow_schedule(STEPS, 5.0)),
        FlowEuler(flow_schedule(STEPS, 5.0)),
        DDIM(ddpm_schedule(STEPS)),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_slots_on_their_own_levels_step_as_if_alone(solver):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 2, 3, 3, generator=generator)
    noise = torch.randn(4, 2, 3, 3, generator=generator)
    levels = [12, 9, 5, 3]
    together, state = x, solver.fresh_state(x)
    alone, states = list(x.split(1)), [solver.fresh_state(one) for one in x.split(1)]
    for _ in range(3):
        together, state = solver.step(together, network(together, 7.0), levels, state, noise)
        for k, level in enumerate(levels):
            alone[k], states[k] = solver.step(
                alone[k], network(alone[k], 7.0), [level], states[k], noise[k : k + 1]
            )
        levels = [level - 1 for level in levels]
    torch.testing.assert_close(together, torch.cat(alone))


class Copies(TorchFunctionMode):
    """Remembers how tensors were moved."""

    def __init__(self):
        super().__init__()
        self.told = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and "non_blocking" in (kwargs or {}):
            self.told.append(kwargs["non_blocking"])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_cuda_copies_while_the_program_goes_on(device):
    """Elsewhere a copy may read the numbers of a solver's step when they are gone."""
    with Copies() as copies:
        numbers = per_slot(torch.ones(5), torch.tensor([1, 2]), torch.zeros(2, 1, device=device))
    assert numbers.shape == (2, 1, 1, 1)
    assert numbers.device.type == device
    assert not any(copies.told)
