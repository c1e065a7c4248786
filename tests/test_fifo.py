"""FIFO's own choices: windows that are left out, and a queue that grows out of the opening clip."""

import itertools

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from hypothesis import given, settings
from hypothesis import strategies as st

from miga_bench.backbones.base import LatentShape
from miga_bench.errors import UserError
from miga_bench.sampling import CounterNoise, Fifo, FifoSettings, estimate_windows

NOISE = CounterNoise(0, LatentShape(3, 4, 4))


def fifo(length, steps=12, window=8, lookahead=True, **changes):
    """Return a video's latents, and the passes that made them."""
    reports = []
    sampler = Fifo(FifoSettings(steps, 2.0, lookahead, **changes))
    backbone = AnalyticBackbone("wan", window)
    made = list(sampler.stream(backbone, PROMPTS, NOISE, length, reports.append))
    assert reports[-1].windows == estimate_windows(sampler, backbone, length)
    return torch.stack(made), [report for report in reports if report.stage == "queue"]


def test_a_queue_as_long_as_the_clip_has_nothing_to_grow():
    """Breaks if growth differs from the clones in more than the slots before the opening clip."""
    plain, _ = fifo(20, steps=8, lookahead=False)
    grown, _ = fifo(20, steps=8, lookahead=False, growth=True)
    assert torch.equal(plain, grown)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(0, 12), st.booleans(), st.integers(17, 24))
def test_growth_takes_fewer_windows_to_the_first_frame_and_all(window, more, lookahead, length):
    sizes = {"steps": window + more, "window": window, "lookahead": lookahead}
    cloned, passes = fifo(length, **sizes)
    grown, fewer = fifo(length, growth=True, **sizes)
    assert grown.shape == cloned.shape
    assert len(passes) == len(fewer) == more + length
    assert fewer[-1].windows <= passes[-1].windows
    if more > window:
        assert fewer[more].windows < passes[more].windows, "the first frame comes sooner"


def test_the_context_is_what_has_left():
    """Breaks if a queue that has grown reads other slots than one that began with clones."""
    _, passes = fifo(24, growth=True)
    _, cloned = fifo(24)
    grown, ever = (
        [b.windows - a.windows for a, b in itertools.pairwise(taken[10:])]
        for taken in (passes, cloned)
    )
    assert grown == ever


def test_growth_is_not_as_released():
    with pytest.raises(UserError, match="growth=true with released=true"):
        fifo(4, growth=True, released=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 8), st.integers(0, 12), st.booleans(), st.integers(1, 12))
def test_fifo_without_idle_windows_is_the_same_video(window, more, lookahead, length):
    """Breaks if a latent that is handed out depends on a window that is left out."""
    made, calls = [], []
    for released in (True, False):
        backbone = AnalyticBackbone("wan", window)
        chosen = FifoSettings(window + more, 2.0, lookahead, released=released)
        made.append(Fifo(chosen).sample(backbone, PROMPTS, NOISE, length))
        calls.append(backbone.denoiser.calls)
        assert calls[-1] == 2 * estimate_windows(Fifo(chosen), backbone, length)
    assert torch.equal(*made)
    assert (calls[1] < calls[0]) == (lookahead or more > 0), "one window is never idle"
