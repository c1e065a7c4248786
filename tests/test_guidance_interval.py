"""Guidance at some levels only: what is computed, what is counted, and that off is absent. Seconds."""

import dataclasses

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from simple_backbone import SimpleBackbone
from test_sampling import NOISE, SMALL, miga

from miga_bench.errors import UserError
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.video import Video, Watcher
from miga_bench.sampling import METHODS, Fifo, FifoSettings, resolve
from miga_bench.sampling.base import Cost
from miga_bench.sampling.denoise import WindowDenoiser, Work
from miga_bench.sampling.estimate import estimate
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.windows import Window

FEW = {
    "short": {},
    "fifo": {},
    "scaling-noise": {"beams": 2, "candidates": 2, "reward": "latent", "released": True},
    "miga": {"zigzag": 4, "guidance_frames": 2, "stage2_steps": 3, "renoise": 2, "stride": 4}
    | {"reflection": "continuous", "reflection_threshold": -1.0, "reflection_level": 9}
    | {"reference_chunks": 1, "candidates": 2},
}


def fifo(backbone=None, length=9, **changes):
    settings = dataclasses.replace(FifoSettings(12, 3.0), **changes)
    return Fifo(settings).sample(
        backbone or AnalyticBackbone("wan", window=8), PROMPTS, NOISE, length
    )


@pytest.mark.parametrize("make", [fifo, miga])
def test_off_is_absent_and_nothing_guided_is_no_guidance(make):
    """Breaks if an interval that holds every level changes a bit, or one that holds none leaves a trace."""
    plain = make()
    assert torch.equal(make(guidance_from=1, guidance_to=12), plain)
    unguided, never = (AnalyticBackbone("wan", window=8) for _ in range(2))
    expected = make(unguided, guidance_scale=1.0)
    assert torch.equal(make(never, guidance_from=0, guidance_to=0), expected)
    assert never.denoiser.calls == unguided.denoiser.calls
    assert not torch.equal(make(guidance_from=5), plain)
    assert not torch.equal(make(guidance_from=5), make(guidance_to=5))


def denoiser(scale, levels=None):
    backbone = AnalyticBackbone("wan", window=4)
    found = WindowDenoiser(
        backbone, PROMPTS, backbone.solver(backbone.schedule(12)), NOISE, scale, 8, Cost()
    )
    if levels is not None:
        found.guided_levels = levels
    return backbone, found


@pytest.mark.parametrize("whole", [False, True])
def test_a_window_is_guided_where_a_written_slot_is(whole):
    """Breaks if halves go to the wrong windows, or a slot outside of the interval takes guidance."""
    backbone, some = denoiser(3.0, range(5, 8))
    solver = some.solver
    queue = Queue.fresh(NOISE(list(range(12)), "x"), list(range(1, 13)), list(range(12)), solver)
    windows = [
        Window((0, 1, 2, 3), range(1, 3), 1),  # levels 2, 3
        Window((2, 3, 4, 5), range(4, 6), 2),  # 5, 6
        Window((5, 6, 7, 8), range(6, 9), 1),  # 7, 8, 9
        Window((4, 8, 9, 10), range(8, 10), 1),  # 9, 10; reads 5, which it does not write
    ]
    (found,) = some.predict([Work(queue, windows, whole)])
    assert backbone.denoiser.batches == [4 + 2]
    assert (some.cost.windows, some.cost.nfe, some.cost.nfe_latents) == (4, 6, 24)
    every, none = (denoiser(s)[1].predict([Work(queue, windows, whole)])[0] for s in (3.0, 1.0))
    slots = [s for w in windows for s in (w.reads if whole else w.writes)]
    owners = [k for k, w in enumerate(windows) for _ in (w.reads if whole else w.writes)]
    for result, slot, owner, guided, plain in zip(found, slots, owners, every, none, strict=True):
        inside = 5 <= queue.levels[slot] < 8 and owner in (1, 2)
        assert torch.equal(result, guided if inside else plain), (owner, slot)


@pytest.mark.parametrize("interval", [{}, {"guidance_from": 6}, {"guidance_to": 8}])
@pytest.mark.parametrize("method", sorted(FEW))
def test_what_is_counted_is_what_was_computed(method, interval):
    """Breaks if evaluations are counted by windows: a part of them has no unconditional half."""
    backbone = AnalyticBackbone("wan", window=8)
    overrides = {"steps": 12, "guidance_scale": 3.0, **FEW[method], **interval}
    sampler = METHODS[method](resolve(method, backbone, "paper", overrides))
    reports, length = [], 8 if method == "short" else 17
    list(sampler.stream(backbone, PROMPTS, NOISE, length, reports.append))
    assert reports[-1].nfe == backbone.denoiser.calls > reports[-1].windows
    assert reports[-1].nfe_latents <= 8 * reports[-1].nfe
    if interval:
        assert reports[-1].nfe < 2 * reports[-1].windows


@pytest.mark.parametrize("method", ["short", "fifo", "miga"])
def test_the_estimate_knows_the_interval(method):
    """Breaks if a plan says twice the windows where less is computed."""
    backbone = AnalyticBackbone("wan", window=8)
    without = {"reflection": "off"} if method == "miga" else {}
    overrides = {"steps": 12, "guidance_scale": 3.0, **FEW[method], **without, "guidance_from": 6}
    sampler = METHODS[method](resolve(method, backbone, "paper", overrides))
    expected = estimate(sampler, backbone, 8)
    sampler.sample(backbone, PROMPTS, NOISE, 8)
    assert expected.windows < expected.nfe == backbone.denoiser.calls < 2 * expected.windows


def test_the_record_says_what_was_computed(tmp_path):
    backbone = SimpleBackbone()
    settings = resolve("fifo", backbone, None, {"steps": "8", "guidance_from": "5"})
    request = GenerateRequest((PromptAt("a red circle"),), tmp_path / "out.mp4", "fifo", frames=9)
    video = Video(request, backbone, Fifo(settings))
    video.plan(Watcher())
    with StopSignals() as stop:
        record = video.write(request.output, tmp_path / "out.png", Watcher(), stop).record
    assert record["settings"]["guidance_from"] == 5
    cost = record["cost"]
    assert cost["windows"] < cost["nfe"] == backbone.clean_denoiser.calls < 2 * cost["windows"]
    assert cost["nfe_latents"] == 6 * cost["nfe"]


def test_levels_are_given_by_text():
    backbone = AnalyticBackbone("wan", window=8)
    chosen = resolve("fifo", backbone, None, {"guidance_from": "3", "guidance_to": "9"})
    assert chosen.guided_levels == range(3, 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance_from": -1}, "a level from 0 to the 12 steps"),
        ({"guidance_from": 13}, "a level from 0 to the 12 steps"),
        ({"guidance_to": 13}, "from guidance_from's 0 to the 12 steps"),
        ({"guidance_from": 6, "guidance_to": 5}, "from guidance_from's 6 to the 12 steps"),
    ],
)
def test_impossible_intervals_are_refused(changes, words):
    assert SMALL.steps == 12
    for make in (fifo, miga):
        with pytest.raises(UserError, match=words):
            make(**changes)
