"""What each process of test_window_parallel.py does; all cases in one start, since imports take seconds."""

import os
import sys
import time
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from diffusers import UNet3DConditionModel  # noqa: F401  the import that takes the time
from vc2_fixtures import TEXT_WIDTH, tiny_unet

from miga_bench.backbones import load_backbone
from miga_bench.backbones.vc2_denoiser import VideoCrafterDenoiser
from miga_bench.harness.window_parallel import TeamError, WindowParallel
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve

PROCESSES = 4
TIMEOUT = 120  # seconds that one process waits for another
PATIENCE = 3  # seconds that one process waits for another, where one hangs
LENGTH = 9
MIGA = {
    "steps": 9,
    "zigzag": 2,
    "guidance_frames": 2,
    "stride": 3,
    "stage2_steps": 2,
    "renoise": 2,
    "reflection_threshold": -2.0,  # every pass searches
    "reflection_level": 8,
    "reference_chunks": 1,
    "candidates": 3,
}
SEARCH = {"beams": 2, "candidates": 3, "greedy": 0.5, "reward": "latent", "lag": 2}

# A pass is one call, alone and together.
COMMON = {"guidance_scale": 3.0, "batch": 64}
# name -> method, preset, settings
CASES = {
    "miga": ("miga", "paper", {**MIGA, "reflection": "continuous"}),
    "miga anchored": ("miga", "anchored", {**MIGA, "reflection": "off"}),
    "miga release": ("miga", "release", {**MIGA, "reflection": "growth"}),
    "fifo": ("fifo", "paper", {"steps": 9}),
    "scaling-noise": ("scaling-noise", "paper", {"steps": 7, **SEARCH}),
    "freelong": ("freelong", "paper", {"steps": 4}),
    "freepca": ("freepca", "paper", {"steps": 4, "stride": 2}),
    "short": ("short", "paper", {"steps": 4}),
    "miga of any batch": ("miga", "paper", {**MIGA, "reflection": "off", "batch": 0}),
    # One row in every call, alone or together: the same to the last bit.
    "one row a call": (
        "miga",
        "paper",
        {**MIGA, "reflection": "off", "guidance_scale": 1, "batch": 1},
    ),
}
WHOLE = ("freelong", "freepca", "short")
# Which cases a team of so many makes.
MADE = {1: ["miga"], 2: ["miga", "short", "one row a call"], 4: list(CASES)}


def tiny():
    """The first layer of the embedded model, on small clips."""
    backbone = load_backbone("tiny-wan", device="cpu", height=32, width=32, window=6)
    network = backbone.denoiser.transformer
    network.blocks = network.blocks[:1]
    return backbone


def sampled(backbone, name, seed=0, length=LENGTH):
    """Yield the latents of a case."""
    method, preset, overrides = CASES[name]
    settings = resolve(method, backbone, preset, {**COMMON, **overrides})
    length = min(length, backbone.window) if method == "short" else length
    prompts = ["a red circle moves right", "a red circle moves down"]
    starts = (0,) if name in WHOLE else (0, 4)
    schedule = PromptSchedule(
        backbone.encode(prompts[: len(starts)]), backbone.encode([""]), starts
    )
    noise = CounterNoise(seed, backbone.latent_shape)
    yield from METHODS[method](settings).stream(backbone, schedule, noise, length)


def video(backbone, name, **changes):
    return torch.stack(list(sampled(backbone, name, **changes)))


def odd_rows(rows):
    """Return a denoiser of the other family and the arguments of a call with a cut."""
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, 4, 5, 4, 4, generator=generator)
    timesteps = torch.rand(rows, 5, generator=generator) * 1000
    text = torch.randn(rows, 3, TEXT_WIDTH, generator=generator)
    return VideoCrafterDenoiser(tiny_unet()).eval(), (latents, timesteps, text)


class Watched:
    """How many rows each call of a backbone's network held; call ``at`` ends in ``then()``."""

    def __init__(self, backbone, at=None, then=None):
        self.network = backbone.denoiser
        self.rows, self.at, self.then = [], at, then

    def __enter__(self):
        self.hook = self.network.register_forward_pre_hook(self.note)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def note(self, _, arguments):
        self.rows.append(len(arguments[0]))
        if len(self.rows) == self.at:
            self.then()


def fail():
    raise ValueError("no more memory")


def attempt(team, backbone, seed=0, take=None, **watched):
    """Sample until it ends in an error, and return it in words."""
    try:
        with Watched(backbone, **watched), team.sharing(backbone):
            for number, _ in enumerate(sampled(backbone, "fifo", seed=seed), 1):
                if number == take:
                    break
    except (TeamError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


class Noted(WindowParallel):
    """A team that notes how many rows each call of all had."""

    def share(self, rows):
        self.calls = [*getattr(self, "calls", []), rows]
        return super().share(rows)


def share_cases(group, backbone, names):
    """Return each case's video, the rows this process denoised for it and those of all calls."""
    made = {}
    for name in names:
        team = Noted(group)
        with team.sharing(backbone):
            made[name] = video(backbone, name), team.rows, team.calls
        assert backbone.team is None
    return made


@torch.inference_mode()
def run(rank, port, folder):
    """Be process ``rank``; results go to ``folder``, also those of one that will be killed."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=TIMEOUT)
    )
    groups = {size: dist.new_group(range(size)) for size in (1, 2)} | {4: dist.group.WORLD}
    impatient = dist.new_group(range(PROCESSES), timeout=timedelta(seconds=PATIENCE))
    backbone = tiny()
    seen = {}
    for size, group in groups.items():
        if rank < size:
            seen[size] = share_cases(group, backbone, MADE[size])
            team = WindowParallel(group)
            with team.sharing(backbone):
                for rows in (1, 2, 3, 5, 7, 9):
                    denoiser, arguments = odd_rows(rows)
                    seen[size, rows] = team.split(denoiser)(*arguments, cut=2)

    team = WindowParallel()
    # What one process can take counts for all.
    backbone.default_batch = lambda: 1 if rank == 1 else 5
    with Watched(backbone) as watched, team.sharing(backbone):
        seen["tight"] = video(backbone, "miga of any batch"), max(watched.rows)
    del backbone.default_batch

    seen["fails"] = attempt(team, backbone, at=3 if rank == 1 else None, then=fail)
    seen["other seed"] = attempt(team, backbone, seed=7 if rank == 2 else 0)
    seen["leaves"] = attempt(team, backbone, take=2 if rank == 0 else None)
    with team.sharing(backbone):
        seen["afterwards"] = video(backbone, "fifo")

    slow = WindowParallel(impatient)
    at = 3 if rank == 2 else None
    seen["hangs"] = attempt(slow, backbone, at=at, then=lambda: time.sleep(2 * PATIENCE))

    if rank == 3:
        torch.save(seen, f"{folder}/{rank}.pt")
    started = time.monotonic()
    seen["killed"] = attempt(team, backbone, at=3 if rank == 3 else None, then=lambda: os._exit(9))
    seen["seconds"] = time.monotonic() - started
    torch.save(seen, f"{folder}/{rank}.pt")
    with suppress(RuntimeError):
        dist.destroy_process_group()
